"""What clients of the OpenAI and Anthropic APIs get from the server, over the fake engine whose tokens are known."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from stoker.text import Tokenizer
from support.served_engine import expected_token
from support.server_process import CHECKPOINT, RunningServer

TOKENIZER = Tokenizer.from_folder(CHECKPOINT)


def expected_text(prompt: list[int], n: int, index: int = 0) -> str:
    return TOKENIZER.decode([expected_token(prompt, index, k) for k in range(n)])


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The JSON of each `data:` frame of a stream, the final [DONE] left out."""
    lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


@pytest.fixture
def http(server: RunningServer) -> Any:
    with server.client() as client:
        yield client


def test_completion_gives_the_engines_tokens_as_text(http: httpx.Client) -> None:
    """Tokens, text and usage of the plainest request are right."""
    body = http.post("/v1/completions", json={"model": "m", "prompt": [5, 6, 9], "max_tokens": 12}).json()
    assert body["choices"][0]["text"] == expected_text([5, 6, 9], 12)
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["prompt_tokens"] == 3
    assert body["usage"]["completion_tokens"] == 12


def test_streamed_and_whole_answers_are_equal(http: httpx.Client) -> None:
    """Streaming changes how an answer comes, never what it is."""
    ask = {"prompt": "Once upon a time", "max_tokens": 30, "n": 3}
    whole = http.post("/v1/completions", json=ask).json()
    texts = ["", "", ""]
    with http.stream("POST", "/v1/completions", json={**ask, "stream": True}) as response:
        for event in events(response):
            for choice in event["choices"]:
                texts[choice["index"]] += choice["text"]
    assert texts == [choice["text"] for choice in whole["choices"]]
    assert len(set(texts)) == 3


def test_several_prompts_come_back_in_order(http: httpx.Client) -> None:
    """Choices are numbered prompt by prompt, n by n."""
    prompts = [[11, 12], [13], [14, 15, 16]]
    body = http.post("/v1/completions", json={"prompt": prompts, "max_tokens": 4, "n": 2}).json()
    texts = [choice["text"] for choice in body["choices"]]
    assert texts == [expected_text(prompt, 4, index) for prompt in prompts for index in (0, 1)]


def test_a_stop_string_ends_the_answer_in_the_engine_too(http: httpx.Client, server: RunningServer) -> None:
    """The text stops before the string, and the req does not run on."""
    full = expected_text([21], 40)
    stop = full[len(full) // 2 : len(full) // 2 + 4]
    body = http.post("/v1/completions", json={"prompt": [21], "max_tokens": 2000, "stop": [stop]}).json()
    assert body["choices"][0]["text"] == full[: full.index(stop)]
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["choices"][0]["stop_reason"] == stop
    assert http.get("/ready").json()["engine"]["num_running"] == 0


def test_chat_streams_role_content_finish_and_usage(http: httpx.Client) -> None:
    """The chunks are in the order that OpenAI's clients rely on."""
    ask = {
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 6,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    with http.stream("POST", "/v1/chat/completions", json=ask) as response:
        chunks = events(response)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"
    assert chunks[-1]["usage"]["completion_tokens"] == 6
    assert chunks[-1]["choices"] == []


def test_logprobs_have_one_entry_a_token(http: httpx.Client) -> None:
    """Both APIs' shapes."""
    body = http.post("/v1/completions", json={"prompt": [30], "max_tokens": 5, "logprobs": 2}).json()
    logprobs = body["choices"][0]["logprobs"]
    assert len(logprobs["tokens"]) == len(logprobs["token_logprobs"]) == len(logprobs["top_logprobs"]) == 5
    ask = {
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 5,
        "logprobs": True,
        "top_logprobs": 3,
    }
    content = http.post("/v1/chat/completions", json=ask).json()["choices"][0]["logprobs"]["content"]
    assert len(content) == 5
    assert all(len(entry["top_logprobs"]) == 3 for entry in content)


def test_responses_and_messages_speak_their_apis(http: httpx.Client) -> None:
    """The two other dialects, whole and streaming, give the same text."""
    whole = http.post("/v1/responses", json={"input": "hi", "max_output_tokens": 4}).json()
    assert whole["status"] == "incomplete"
    with http.stream(
        "POST", "/v1/responses", json={"input": "hi", "max_output_tokens": 4, "stream": True}
    ) as response:
        deltas = [e["delta"] for e in events(response) if e["type"] == "response.output_text.delta"]
    assert "".join(deltas) == whole["output"][0]["content"][0]["text"]
    ask = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    message = http.post("/v1/messages", json=ask).json()
    assert message["stop_reason"] == "max_tokens"
    with http.stream("POST", "/v1/messages", json={**ask, "stream": True}) as response:
        deltas = [e["delta"]["text"] for e in events(response) if e["type"] == "content_block_delta"]
    assert "".join(deltas) == message["content"][0]["text"]


BAD = [
    ({"prompt": ""}, "empty"),
    ({"prompt": []}, "empty"),
    ({"prompt": "x", "max_tokens": -1}, "max_tokens"),
    ({"prompt": "x", "temperature": -1}, "temperature"),
    ({"prompt": "x", "n": 0}, "n=0"),
    ({"prompt": "x", "n": 10_000}, "n=10000"),
    ({"prompt": [5] * 5000}, "5000 tokens"),
    ({"prompt": [1, 99_999]}, "99999"),
    ({"prompt": "x", "logit_bias": {"a": 1}}, "logit_bias"),
    ({"prompt": "x", "stop": ["a"] * 100}, "stop"),
    ({"prompt": {"a": 1}}, "prompt"),
    ({}, "prompt"),
]


@pytest.mark.parametrize(("body", "says"), BAD, ids=lambda value: str(value)[:30])
def test_bad_input_is_a_400_that_says_why(http: httpx.Client, body: dict[str, Any], says: str) -> None:
    """The message names what was given; nothing is started."""
    response = http.post("/v1/completions", json=body)
    assert response.status_code == 400, response.text
    assert says in response.json()["error"]["message"]


def test_bodies_that_are_no_json(http: httpx.Client) -> None:
    """Broken, deep and badly encoded bodies are 400s, an unknown model is a 404, a wrong method a 405."""
    for content in (
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"prompt": ' + b"[" * 1000 + b"]" * 1000 + b"}",
    ):
        assert http.post("/v1/completions", content=content).status_code == 400
    assert http.post("/v1/completions", json={"prompt": "x", "model": "other"}).status_code == 404
    assert http.get("/v1/completions").status_code == 405
    assert http.get("/nothing").status_code == 404


def test_an_error_in_the_engine_is_a_500_and_an_event_in_a_stream(http: httpx.Client) -> None:
    """Only the request that fails fails."""
    assert http.post("/v1/completions", json={"prompt": [7], "max_tokens": 4}).status_code == 500
    ask = {"prompt": [[40], [7]], "max_tokens": 50, "stream": True}
    with http.stream("POST", "/v1/completions", json=ask) as response:
        assert any("error" in event for event in events(response))
    assert http.post("/v1/completions", json={"prompt": [41], "max_tokens": 4}).status_code == 200


def test_tokenize_and_detokenize_are_inverse(http: httpx.Client) -> None:
    """As in vLLM."""
    text = "The red key opens the cellar. Ünïcödé ☃"
    tokens = http.post("/tokenize", json={"prompt": text, "add_special_tokens": False}).json()["tokens"]
    assert http.post("/detokenize", json={"tokens": tokens}).json()["prompt"] == text


def test_request_ids_are_echoed_and_metrics_count(http: httpx.Client) -> None:
    """An operator can follow a request."""
    response = http.post(
        "/v1/completions", json={"prompt": [50], "max_tokens": 2}, headers={"X-Request-Id": "abc-1"}
    )
    assert response.headers["x-request-id"] == "abc-1"
    text = http.get("/metrics").text
    assert 'stoker_http_requests_total{code="200",path="/v1/completions"}' in text
    assert "stoker_time_to_first_token_seconds_bucket" in text
    assert "stoker_engine_num_running" in text
    counted = re.search(r"^stoker_prompt_tokens_total (\S+)", text, re.MULTILINE)
    assert counted is not None
    assert float(counted[1]) >= 1


def test_long_prompts_beside_short_ones(http: httpx.Client) -> None:
    """Those that are encoded beside the event loop, with short ones and token ids between: the same tokens, in their order."""
    prompts = ["a short one", "the house " * 220, [5, 6, 7], "and the last"]
    body = http.post("/v1/completions", json={"prompt": prompts[:2] + prompts[3:], "max_tokens": 1}).json()
    encoded = [TOKENIZER.encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    assert body["usage"]["prompt_tokens"] == sum(len(ids) for place, ids in enumerate(encoded) if place != 2)
    for prompt, ids in zip(prompts, encoded, strict=True):
        one = http.post("/v1/completions", json={"prompt": prompt, "max_tokens": 3}).json()
        assert one["choices"][0]["text"] == expected_text(ids, 3)
    many = [token for token in encoded[1] * 8 if token]
    assert len(many) > 2048
    assert http.post("/detokenize", json={"tokens": many}).json()["prompt"] == TOKENIZER.decode(many)
