"""POST /tokenize and /detokenize, as in vLLM."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from stoker.server.body import read
from stoker.server.conversation import Conversation, render
from stoker.server.errors import bad_request
from stoker.server.live import json_response
from stoker.server.protocol import DetokenizeRequest, TokenizeRequest
from stoker.server.state import ServerState


async def tokenize(request: Request, state: ServerState) -> Response:
    """A prompt, or messages through the chat template, as token ids."""
    body = await read(request, TokenizeRequest, state.settings.limits)
    state.check_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise bad_request("give either prompt or messages")
    if body.messages is not None:
        conversation = Conversation(
            body.messages,
            tools=body.tools,
            template_kwargs=body.chat_template_kwargs,
            add_generation_prompt=body.add_generation_prompt and not body.continue_final_message,
            continue_final_message=body.continue_final_message,
        )
        tokens = (await render(state, conversation)).token_ids
    else:
        tokens = await state.encode(body.prompt or "", add_special_tokens=body.add_special_tokens)
    answer: dict[str, Any] = {"count": len(tokens), "max_model_len": state.max_model_len, "tokens": tokens}
    if body.return_token_strs:
        answer["token_strs"] = [state.tokenizer.token_text(token) for token in tokens]
    return json_response(answer)


async def detokenize(request: Request, state: ServerState) -> Response:
    """Token ids as text."""
    body = await read(request, DetokenizeRequest, state.settings.limits)
    state.check_model(body.model)
    _ = state.max_model_len  # 503 while no engine is up
    vocab = state.client.ready.vocab_size if state.client.ready else 0
    wrong = next((token for token in body.tokens if not 0 <= token < vocab), None)
    if wrong is not None:
        raise bad_request(f"token id {wrong} is outside the vocabulary of {vocab}", "tokens")
    return json_response({"prompt": await state.decode(body.tokens)})
