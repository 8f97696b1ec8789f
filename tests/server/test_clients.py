"""The clients that people use, unchanged, against the whole server with the embedded model: what they are given equals what the
offline API gives for the same prompts and seeds, streaming and not."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import anthropic
import openai
import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from stoker import LLM, SamplingParams
from stoker.text import ChatTemplate
from support.server_process import CHECKPOINT, RunningServer

PROMPTS = ["Once upon a time", "The miller of Brookbank", "A bell seller"]
MESSAGES: Any = [{"role": "user", "content": "Write a short story about a bell seller."}]
MODEL = "m"


@pytest.fixture(scope="module")
def client(demo: RunningServer) -> Any:
    with openai.OpenAI(base_url=demo.url + "/v1", api_key="secret", max_retries=0, timeout=60) as made:
        yield made


@pytest.fixture(scope="module")
def claude(demo: RunningServer) -> Any:
    with anthropic.Anthropic(base_url=demo.url, api_key="secret", max_retries=0, timeout=60) as made:
        yield made


def chat_ids(offline: LLM, messages: Any = MESSAGES) -> list[int]:
    tokenizer = offline.get_tokenizer()
    template = ChatTemplate.from_folder(CHECKPOINT, tokenizer.special_tokens)
    assert template is not None
    return tokenizer.encode(template.render(messages), add_special_tokens=False)


def expected(offline: LLM, prompt: Any, **params: Any) -> Any:
    """The offline answer; top_p is the checkpoint's recommendation, which the server applies by itself."""
    return offline.generate([prompt], SamplingParams(**{"temperature": 0.9, "top_p": 0.9, **params}))[0]


def test_openai_completions(client: openai.OpenAI, offline: LLM) -> None:
    """Text, ends and usage, several prompts at once, greedy and seeded."""
    for extra in ({"temperature": 0.0}, {"temperature": 0.9, "seed": 7}):
        whole = client.completions.create(model=MODEL, prompt=PROMPTS, max_tokens=24, **extra)
        wanted = [expected(offline, prompt, max_tokens=24, **extra) for prompt in PROMPTS]
        assert [choice.text for choice in whole.choices] == [one.outputs[0].text for one in wanted]
        assert [choice.finish_reason for choice in whole.choices] == [
            one.outputs[0].finish_reason for one in wanted
        ]
        assert whole.usage is not None
        assert whole.usage.prompt_tokens == sum(len(one.prompt_token_ids) for one in wanted)
        texts = [""] * len(PROMPTS)
        stream = client.completions.create(
            model=MODEL,
            prompt=PROMPTS,
            max_tokens=24,
            stream=True,
            stream_options={"include_usage": True},
            **extra,
        )
        usage = None
        for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] += choice.text
        assert texts == [choice.text for choice in whole.choices]
        assert usage is not None
        assert usage.completion_tokens == whole.usage.completion_tokens


def test_openai_completions_with_everything(client: openai.OpenAI, offline: LLM) -> None:
    """Token ids, n, stop, penalties, bias, min_p and top_k, as the offline API takes them."""
    ids = offline.get_tokenizer().encode(PROMPTS[1])
    banned = expected(offline, ids, temperature=0, max_tokens=1).outputs[0].token_ids[0]
    whole = client.completions.create(
        model=MODEL,
        prompt=ids,
        max_tokens=30,
        n=3,
        seed=11,
        temperature=1.1,
        stop=[" the"],
        presence_penalty=0.5,
        frequency_penalty=0.2,
        logit_bias={str(banned): -100},
        extra_body={
            "top_k": 40,
            "min_p": 0.02,
            "repetition_penalty": 1.1,
            "min_tokens": 3,
            "user": "somebody",
        },
    )
    wanted = expected(
        offline,
        {"prompt_token_ids": ids},
        max_tokens=30,
        n=3,
        seed=11,
        temperature=1.1,
        stop=[" the"],
        presence_penalty=0.5,
        frequency_penalty=0.2,
        logit_bias={banned: -100},
        top_k=40,
        min_p=0.02,
        repetition_penalty=1.1,
        min_tokens=3,
    )
    assert [choice.text for choice in whole.choices] == [one.text for one in wanted.outputs]
    assert len({choice.text for choice in whole.choices}) == 3


def test_openai_logprobs_and_echo(client: openai.OpenAI, offline: LLM) -> None:
    """Of the answer and of an echoed prompt, with the best candidates."""
    whole = client.completions.create(
        model=MODEL, prompt=PROMPTS[0], max_tokens=6, temperature=0, logprobs=2, echo=True
    )
    wanted = expected(offline, PROMPTS[0], max_tokens=6, temperature=0, logprobs=2, prompt_logprobs=2)
    found = whole.choices[0].logprobs
    assert found is not None
    assert whole.choices[0].text == PROMPTS[0] + wanted.outputs[0].text
    assert wanted.prompt_logprobs is not None
    tokens = [*wanted.prompt_token_ids, *wanted.outputs[0].token_ids]
    entries = [*wanted.prompt_logprobs, *wanted.outputs[0].logprobs]
    assert found.token_logprobs is not None
    assert found.token_logprobs[0] is None
    for token, value, entry in zip(tokens[1:], found.token_logprobs[1:], entries[1:], strict=True):
        assert value == pytest.approx(entry[token].logprob, abs=1e-4)
    assert found.top_logprobs is not None
    assert all(2 <= len(top) <= 3 for top in found.top_logprobs[1:])
    assert "".join(found.tokens or ()) == whole.choices[0].text
    only = client.completions.create(model=MODEL, prompt=PROMPTS[0], max_tokens=0, logprobs=1, echo=True)
    assert only.choices[0].text == PROMPTS[0]
    assert only.usage is not None
    assert only.usage.completion_tokens == 0


def test_openai_chat(client: openai.OpenAI, offline: LLM) -> None:
    """Whole, streaming, and from asyncio, many at once."""
    ids = chat_ids(offline)
    wanted = expected(offline, ids, max_tokens=40, seed=3).outputs[0]
    ask: dict[str, Any] = {
        "model": MODEL,
        "messages": MESSAGES,
        "max_tokens": 40,
        "seed": 3,
        "temperature": 0.9,
    }
    whole = client.chat.completions.create(**ask, logprobs=True, top_logprobs=2)
    assert whole.choices[0].message.content == wanted.text
    assert whole.choices[0].finish_reason == wanted.finish_reason
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    assert len(logprobs.content or ()) == len(wanted.token_ids)
    pieces = [
        chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**ask, stream=True)
    ]
    assert "".join(pieces) == wanted.text

    async def many() -> list[str | None]:
        url = str(client.base_url)
        async with openai.AsyncOpenAI(base_url=url, api_key="secret", max_retries=0, timeout=60) as one:
            answers = await asyncio.gather(*(one.chat.completions.create(**ask) for _ in range(12)))
        return [answer.choices[0].message.content for answer in answers]

    assert set(asyncio.run(many())) == {wanted.text}


def test_openai_responses(client: openai.OpenAI, offline: LLM) -> None:
    """The Responses API, whole and in its events."""
    wanted = expected(offline, chat_ids(offline), max_tokens=30, temperature=0).outputs[0].text
    ask: dict[str, Any] = {
        "model": MODEL,
        "input": MESSAGES[0]["content"],
        "max_output_tokens": 30,
        "temperature": 0,
    }
    whole = client.responses.create(**ask)
    assert whole.output_text == wanted
    assert whole.usage is not None
    assert whole.usage.input_tokens == len(chat_ids(offline))
    deltas, last = [], None
    for event in client.responses.create(**ask, stream=True):
        if event.type == "response.output_text.delta":
            deltas.append(event.delta)
        last = event
    assert "".join(deltas) == wanted
    assert last is not None
    assert last.type == "response.incomplete" if whole.status == "incomplete" else "response.completed"


def test_openai_embeddings(client: openai.OpenAI) -> None:
    """The client asks for base64 by itself; equal texts give equal vectors of length 1, whoever runs beside them."""
    found = client.embeddings.create(model=MODEL, input=[PROMPTS[0], PROMPTS[1], PROMPTS[0]]).data
    assert found[0].embedding == found[2].embedding
    assert found[0].embedding != found[1].embedding
    assert math.fsum(x * x for x in found[0].embedding) == pytest.approx(1.0, abs=1e-5)
    plain = client.embeddings.create(model=MODEL, input=PROMPTS[0], encoding_format="float").data[0].embedding
    assert plain == pytest.approx(found[0].embedding, abs=1e-6)
    short = client.embeddings.create(model=MODEL, input=PROMPTS[0], dimensions=8).data[0].embedding
    assert len(short) == 8


def test_openai_models_and_errors(client: openai.OpenAI, demo: RunningServer) -> None:
    """Errors arrive as the client's own exceptions."""
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model=MODEL, prompt="x", temperature=-1)
    with pytest.raises(openai.NotFoundError, match="other"):
        client.completions.create(model="other", prompt="x")
    with (
        openai.OpenAI(base_url=demo.url + "/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


def test_anthropic_messages(claude: anthropic.Anthropic, offline: LLM) -> None:
    """Whole, streaming, counted; errors are its own."""
    wanted = expected(offline, chat_ids(offline), max_tokens=30, temperature=0).outputs[0]
    ask: dict[str, Any] = {
        "model": MODEL,
        "messages": MESSAGES,
        "max_tokens": 30,
        "extra_body": {"temperature": 0},
    }
    whole = claude.messages.create(**ask)
    assert whole.content[0].text == wanted.text
    assert whole.stop_reason == {"length": "max_tokens", "stop": "end_turn"}[wanted.finish_reason]
    with claude.messages.stream(**ask) as stream:
        assert "".join(stream.text_stream) == wanted.text
        final = stream.get_final_message()
    assert final.content[0].text == wanted.text
    assert final.usage.output_tokens == len(wanted.token_ids)
    assert claude.messages.count_tokens(model=MODEL, messages=MESSAGES).input_tokens == len(chat_ids(offline))
    with pytest.raises(anthropic.BadRequestError, match="role"):
        claude.messages.create(model=MODEL, messages=[{"role": "robot", "content": "x"}], max_tokens=3)
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="other", messages=MESSAGES, max_tokens=3)


def test_langchain(demo: RunningServer, offline: LLM) -> None:
    """ChatOpenAI, invoked and streaming, and its embeddings."""
    url = demo.url + "/v1"
    chat = ChatOpenAI(
        model=MODEL, base_url=url, api_key="secret", temperature=0, max_tokens=30, max_retries=0, timeout=60
    )
    messages = [("system", "You tell stories."), ("user", "Write a short story about a bell seller.")]
    plain = [{"role": role, "content": content} for role, content in messages]
    wanted = expected(offline, chat_ids(offline, plain), max_tokens=30, temperature=0).outputs[0].text
    assert chat.invoke(messages).content == wanted
    assert "".join(str(piece.content) for piece in chat.stream(messages)) == wanted
    embeddings = OpenAIEmbeddings(
        model=MODEL, base_url=url, api_key="secret", check_embedding_ctx_length=False, max_retries=0
    )
    assert embeddings.embed_query(PROMPTS[0]) == embeddings.embed_documents([PROMPTS[0]])[0]


TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"town": {"enum": ["Brookbank", "Aldend"]}},
                "required": ["town"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("weather", "bells")
]


def test_a_call_can_be_forced(client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    """In all three dialects, streaming and not: the answer is a call of that function with arguments of its schema."""
    named = {"type": "function", "function": {"name": "bells"}}
    ask: dict[str, Any] = {
        "model": MODEL,
        "messages": MESSAGES,
        "tools": TOOLS,
        "temperature": 0,
        "max_tokens": 80,
    }
    choice = client.chat.completions.create(**ask, tool_choice=named).choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls or ()
    assert call.function.name == "bells"
    assert json.loads(call.function.arguments)["town"] in ("Brookbank", "Aldend")
    streamed = [
        part
        for chunk in client.chat.completions.create(**ask, tool_choice=named, stream=True)
        for part in chunk.choices[0].delta.tool_calls or ()
    ]
    assert streamed[0].function.name == "bells"
    assert len(streamed) > 3  # the arguments come as they grow
    assert "".join(part.function.arguments for part in streamed) == call.function.arguments
    required = client.chat.completions.create(
        **ask, tool_choice="required", parallel_tool_calls=False
    ).choices[0]
    assert [one.function.name in ("weather", "bells") for one in required.message.tool_calls or ()] == [True]
    flat: Any = [{"type": "function", **tool["function"]} for tool in TOOLS]
    response = client.responses.create(
        model=MODEL,
        input="hello",
        tools=flat,
        tool_choice={"type": "function", "name": "bells"},
        temperature=0,
    )
    assert [item.type for item in response.output] == ["function_call"]
    with client.responses.stream(
        model=MODEL,
        input="hello",
        tools=flat,
        tool_choice={"type": "function", "name": "bells"},
        temperature=0,
    ) as events:
        (item,) = events.get_final_response().output
        assert (item.type, item.arguments) == ("function_call", response.output[0].arguments)
    own: Any = [{"name": t["function"]["name"], "input_schema": t["function"]["parameters"]} for t in TOOLS]
    message = claude.messages.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=80,
        tools=own,
        tool_choice={"type": "tool", "name": "bells"},
    )
    assert message.stop_reason == "tool_use"
    assert message.content[0].name == "bells"
    assert message.content[0].input["town"] in ("Brookbank", "Aldend")
    with claude.messages.stream(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=80,
        tools=own,
        tool_choice={"type": "tool", "name": "bells"},
    ) as stream:
        assert stream.get_final_message().content[0].input["town"] in ("Brookbank", "Aldend")
    with pytest.raises(openai.BadRequestError, match="weather, bells"):
        client.chat.completions.create(**ask, tool_choice={"type": "function", "function": {"name": "no"}})
