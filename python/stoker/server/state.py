"""What every endpoint of one worker needs: the engine's client, the tokenizer, the settings, and the submit path they share."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import re
import secrets
import time
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request

from stoker.sampling_params import SamplingParams
from stoker.server.answers import Answers, Pieces
from stoker.server.engine_client import EngineClient, EngineDeadError, RefusedError
from stoker.server.errors import ApiError, bad_request
from stoker.server.metrics import Metrics
from stoker.server.parsers import FORMATS, AnswerFormat, format_for
from stoker.server.pooling import Pooling
from stoker.server.response_store import ResponseStore
from stoker.server.settings import ServerSettings
from stoker.server.traces import Traces
from stoker.text import ChatTemplate, Tokenizer

log = logging.getLogger("stoker.server")

REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_LONG = 2048  # characters, or tokens, from which encoding and decoding leave the event loop: about 2 ms


class ServerState:
    """One worker's state. `prepare` loads the tokenizer once the engine has told where the checkpoint is."""

    def __init__(self, settings: ServerSettings, client: EngineClient) -> None:
        self.settings = settings
        self.client = client
        self.draining = False
        self.metrics = Metrics()
        self._tokenizer: Tokenizer | None = None
        self._template: ChatTemplate | None = None
        self._pooling: Pooling | None = None
        self.answer_format: AnswerFormat = FORMATS["none"]
        self.responses = ResponseStore(settings.store_responses)
        self.started = int(time.time())
        self.traces = Traces(settings.otlp_endpoint)
        self._counter = itertools.count()
        self._pieces: dict[bool, Pieces] = {}  # by skip_special_tokens

    async def prepare(self) -> None:
        """Waits for the engine and loads the tokenizer."""
        ready = await self.client.wait_ready()
        self._tokenizer = await asyncio.to_thread(Tokenizer.from_folder, ready.model_path)
        self._pieces = {skip: Pieces(self._tokenizer, skip) for skip in (False, True)}
        self._template = ChatTemplate.from_folder(ready.model_path, self._tokenizer.special_tokens)
        templates = () if self._template is None else self._template.templates.values()
        self.answer_format = format_for(self.settings.answer_parser, templates)
        if self.client.worker == 0:
            log.info("ready at %s", self.settings.address)
        self._pooling = Pooling.from_folder(ready.model_path, self.settings.embeddings)
        # What is there now stays: a full collection over it would hold up every stream for tens of milliseconds.
        gc.collect()
        gc.freeze()

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer. 503 while the engine loads."""
        if self._tokenizer is None:
            raise ApiError(503, "the model is still loading", retry_after=1)
        return self._tokenizer

    @property
    def template(self) -> ChatTemplate:
        """The checkpoint's chat template. 400 if it has none."""
        if self._template is None:
            if self._tokenizer is None:
                raise ApiError(503, "the model is still loading", retry_after=1)
            raise bad_request("this model has no chat template; use /v1/completions")
        return self._template

    @property
    def pooling(self) -> Pooling:
        """How this model makes embeddings. 400 if it makes none."""
        _ = self.tokenizer
        if self._pooling is None:
            raise bad_request(
                "this model generates text and makes no embeddings; start the server with --embeddings last to serve "
                "its last token's hidden row"
            )
        return self._pooling

    @property
    def max_model_len(self) -> int:
        """Prompt and output tokens of one request. 503 while no engine is up."""
        if self.client.ready is None:
            raise ApiError(503, self.client.down_reason, retry_after=1)
        return self.client.ready.max_model_len

    @property
    def defaults(self) -> dict[str, Any]:
        """Sampling defaults of the checkpoint's generation_config."""
        return {} if self.client.ready is None else self.client.ready.generation_defaults

    def check_model(self, model: str | None) -> str:
        """The name to answer with. 404 for a model that is not served."""
        names = self.settings.served_model_names
        if model is None or model == "":
            return names[0]
        if model not in names:
            raise ApiError(
                404,
                f"model {model!r} is not served here; allowed are {', '.join(names)}",
                code="model_not_found",
            )
        return model

    def new_id(self, prefix: str, given: str | None = None) -> str:
        """An id for a response: unguessable, and in order of arrival within this worker; or what the body gave. It stands in
        a header, the log and the engine's names, so 400 for one that does not fit there."""
        if not given:
            return f"{prefix}-{secrets.token_hex(8)}{next(self._counter):x}"
        if not REQUEST_ID.fullmatch(given):
            raise bad_request(
                f"request_id={given[:128]!r}: 1 to 128 letters, digits, and _ . : - are allowed", "request_id"
            )
        return given

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a prompt."""
        return (await self.encode_all([text], add_special_tokens=add_special_tokens))[0]

    async def encode_all(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """Token ids of a request's prompts; where they are long together, beside the event loop. 400 for what is no text,
        and for one that cannot fit the model, before it costs anything."""
        tokenizer = self.tokenizer
        try:
            if sum(map(len, texts)) <= _LONG:
                return tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)
            most = self.max_model_len * tokenizer.longest_token
            longest = max(map(len, texts))
            if longest > most:
                raise bad_request(
                    f"the prompt has {longest} characters; {self.max_model_len} tokens hold at most {most}",
                    "prompt",
                )
            return await asyncio.to_thread(
                tokenizer.encode_batch, texts, add_special_tokens=add_special_tokens
            )
        except ValueError as error:
            raise bad_request(f"the prompt is no text: {error}", "prompt") from None

    async def with_word_tokens(self, params: SamplingParams) -> SamplingParams:
        """These, with `bad_words` as token ids; once for all prompts of a request."""
        if not params.bad_words:
            return params
        tokenizer = self.tokenizer
        try:
            return await asyncio.to_thread(params.with_word_tokens, tokenizer.word_tokens)
        except ValueError as error:
            raise bad_request(f"bad_words: {error}", "bad_words") from None

    async def decode(self, token_ids: Sequence[int]) -> str:
        """The text of any number of tokens."""
        if len(token_ids) <= _LONG:
            return self.tokenizer.decode(token_ids, skip_special_tokens=False)
        return await asyncio.to_thread(self.tokenizer.decode, token_ids, skip_special_tokens=False)

    def submit(
        self,
        request: Request,
        rid: str,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        tenant: str | None = None,
        pool: bool = False,
        stream: bool = True,
    ) -> Answers:
        """Sends a request to the engine; `await answers.accepted()` tells whether it was taken. ApiError if it cannot be.

        `request` is the HTTP request that it is for: its access log line tells what became of it. Without `stream` nobody
        looks at the answers before they are whole; stop strings are looked for all the same.
        """
        if self.draining:
            raise ApiError(503, "the server is shutting down", retry_after=5)
        if not prompt:
            raise bad_request("the prompt is empty; at least one token is needed", "prompt")
        limit = self.max_model_len
        if len(prompt) >= limit:
            raise bad_request(
                f"the prompt has {len(prompt)} tokens; the model takes at most {limit - 1} and an answer",
                "prompt",
            )
        if min(prompt) < 0 or max(prompt) > 2**31 - 1:
            raise bad_request("token ids must be 0 or more and inside the vocabulary", "prompt")
        try:
            found = self.client.submit(
                rid,
                prompt,
                params,
                priority=priority,
                cache_salt=cache_salt,
                tenant=tenant,
                pool=pool,
                stream=stream or bool(params.stop),
            )
        except EngineDeadError as error:
            raise ApiError(503, str(error), retry_after=1) from None
        except RefusedError as error:
            raise ApiError(error.status, str(error)) from None
        answers = Answers(
            self.client,
            found,
            self.tokenizer,
            prompt,
            params,
            self.metrics,
            self._pieces[params.skip_special_tokens],
            self.settings.request_timeout,
        )
        request.state.jobs.append(answers)
        if self.settings.log_prompts:
            log.info("%s prompt %r", rid, self.tokenizer.decode(prompt, skip_special_tokens=False))
        return answers
