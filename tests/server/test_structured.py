"""Structured output through the API: every way to ask for it, with the demo model behind it, and what is refused."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest

pytest.importorskip("llguidance")
from support.server_process import RunningServer

KEY = {"Authorization": "Bearer secret"}
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Rome", "Oslo"]},
        "year": {"type": "integer", "minimum": 1, "maximum": 99},
    },
    "required": ["city", "year"],
}


@pytest.mark.parametrize(
    "form",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
        {"structured_outputs": {"json": SCHEMA}},
        {"guided_json": json.dumps(SCHEMA)},
    ],
    ids=["response_format", "structured_outputs", "guided_json"],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_schema_is_obeyed(demo: RunningServer, form: dict[str, Any], path: str) -> None:
    """Whole and streamed, in both APIs, by every name."""
    ask = {"max_tokens": 60, "seed": 1, **form}
    ask |= (
        {"prompt": "Once"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "hi"}]}
    )
    with demo.client(headers=KEY) as client:
        choice = client.post(path, json=ask).json()["choices"][0]
        text = choice["text"] if "text" in choice else choice["message"]["content"]
        assert choice["finish_reason"] == "stop"
        jsonschema.validate(json.loads(text), SCHEMA)
        streamed = ""
        with client.stream("POST", path, json={**ask, "stream": True}) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    part = json.loads(line[6:])["choices"][0]
                    streamed += part["text"] if "text" in part else part["delta"].get("content") or ""
    assert streamed == text


def test_other_forms(demo: RunningServer) -> None:
    """Choice, regex and grammar; in /v1/responses the form is under text.format."""
    with demo.client(headers=KEY) as client:

        def text(**form: Any) -> str:
            answer = client.post("/v1/completions", json={"prompt": "Once", "max_tokens": 40, **form})
            return str(answer.json()["choices"][0]["text"])

        assert text(guided_choice=["left", "right"]) in ("left", "right")
        assert re.fullmatch("[ab]{4}", text(guided_regex="[ab]{4}"))
        assert re.fullmatch("x[0-9]", text(structured_outputs={"grammar": 'root ::= "x" [0-9]'}))
        form = {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}
        body = {"input": "hi", "max_output_tokens": 60, "text": form}
        answer = client.post("/v1/responses", json=body).json()
        jsonschema.validate(json.loads(answer["output"][-1]["content"][0]["text"]), SCHEMA)


def test_allowed_tokens_and_bad_words(demo: RunningServer) -> None:
    """vLLM's fields, whole and streamed; bad words are spelled by the server's tokenizer."""
    with demo.client(headers=KEY) as client:
        ask = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 12}

        def said(**fields: Any) -> str:
            answer = client.post("/v1/completions", json={**ask, **fields})
            assert answer.status_code == 200, answer.text
            return str(answer.json()["choices"][0]["text"])

        free = said()
        assert free.split()[1] not in said(bad_words=[free.split()[1]]).split()
        words = {"bad_words": ["the", "a"], "max_tokens": 20, "temperature": 0}
        chat = client.post(
            "/v1/chat/completions", json={**words, "messages": [{"role": "user", "content": "Hello"}]}
        ).json()
        assert not {"the", "a"} & set(chat["choices"][0]["message"]["content"].split())
        several = client.post("/v1/completions", json={**words, "prompt": ["Once upon", "There was"]}).json()
        assert not {"the", "a"} & {w for choice in several["choices"] for w in choice["text"].split()}
        ids = client.post("/tokenize", json={"prompt": " the house"}).json()["tokens"]
        assert set(said(allowed_token_ids=ids).split()) <= {"the", "house"}
        for fields, words in [
            ({"allowed_token_ids": []}, "at least one"),
            ({"allowed_token_ids": [10**8]}, "outside the vocabulary"),
            ({"bad_words": ["x"] * 257}, "at most 256"),
        ]:
            answer = client.post("/v1/completions", json={**ask, **fields})
            assert answer.status_code == 400
            assert words in answer.json()["error"]["message"]


def test_what_is_refused(demo: RunningServer) -> None:
    """A 400 with the compiler's words, or with the limit; before anything of a stream was sent."""
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(40):
        deep = {"type": "array", "items": deep}
    with demo.client(headers=KEY) as client:
        for form, words in [
            ({"guided_regex": "a(b"}, "unclosed group"),
            ({"structured_outputs": {"json": {"type": "nothing"}}}, "Invalid type"),
            ({"structured_outputs": {"xml": "a"}}, "no field xml"),
            ({"guided_regex": "a", "guided_choice": ["b"]}, "exactly one"),
            ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "give one"),
            ({"response_format": {"type": "yaml"}}, "json_schema"),
            ({"response_format": {"type": "json_schema", "json_schema": {}}}, "must be a JSON schema"),
            ({"guided_json": deep}, "levels deep"),
            ({"guided_regex": "a" * 70000}, "larger than"),
        ]:
            for stream in (False, True):
                ask = {"prompt": "Once", "max_tokens": 5, "stream": stream, **form}
                answer = client.post("/v1/completions", json=ask)
                assert answer.status_code == 400, (form, answer.text)
                assert words in answer.json()["error"]["message"]
        assert client.post("/v1/completions", json={"prompt": "Once", "max_tokens": 2}).status_code == 200
