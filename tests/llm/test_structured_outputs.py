"""Structured output with the demo model: what ends by `stop` is what was asked for, however the batch, the end and the grammar are."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

pytest.importorskip("llguidance")
import llguidance

from stoker import LLM, AsyncLLM, SamplingParams, StructuredOutputsParams
from stoker.engine import grammars
from support.schemas import random_schemas

PROMPT = "Once upon a time"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("stoker-demo", max_num_seqs=16) as made:
        yield made


def texts(llm: LLM, count: int = 8, prompt: str = PROMPT, **params: Any) -> list[tuple[str, str | None]]:
    """Text and end of `count` answers with seeds of their own."""
    settings = [SamplingParams(seed=i, **{"max_tokens": 64, **params}) for i in range(count)]
    outs = llm.generate([prompt] * count, settings, use_tqdm=False)
    return [(one.text, one.finish_reason) for out in outs for one in out.outputs]


class Bytes:
    """A tokenizer whose tokens are bytes: reads a text under a grammar without the engine's tokens."""

    eos_token_id, bos_token_id = 256, None
    tokens = (*(bytes([i]) for i in range(256)), b"<eos>")
    special_token_ids = (256,)

    def __call__(self, text: Any) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def is_beginning(text: str, asked: StructuredOutputsParams) -> bool:
    """Whether some answer to the constraint starts with this text."""
    tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()))
    data = list(text.rstrip("�").encode())
    return bool(
        llguidance.LLMatcher(tokenizer, asked.source(), log_level=0).try_consume_tokens(data) == len(data)
    )


@pytest.mark.parametrize(
    "count", [25, pytest.param(500, marks=[pytest.mark.long, pytest.mark.timeout(3000)])]
)
def test_random_schemas(llm: LLM, count: int) -> None:
    """All that end by `stop` validate; those that max_tokens cut are valid beginnings, and few."""
    schemas, refused = random_schemas(count)
    asked = [StructuredOutputsParams(json=schema) for schema in schemas]
    # The penalty is for the model's loops: left alone it writes some numbers without end.
    params = [
        SamplingParams(max_tokens=512, seed=i, frequency_penalty=1.0, structured_outputs=one)
        for i, one in enumerate(asked)
    ]
    outs = llm.generate([PROMPT] * count, params, use_tqdm=False)
    cut = 0
    for schema, one, out in zip(schemas, asked, outs, strict=True):
        answer = out.outputs[0]
        if answer.finish_reason == "stop":
            # Not time and date-time: Python's readers of them take six digits of a second, RFC 3339 any number.
            checker = jsonschema.FormatChecker(("date", "uuid", "ipv4", "email"))
            jsonschema.validate(json.loads(answer.text), schema, format_checker=checker)
        else:
            assert answer.finish_reason == "length", (schema, out)
            assert is_beginning(answer.text, one), (schema, answer.text)
            cut += 1
    assert cut < 0.2 * count
    if path := os.environ.get("STOKER_REPORT"):
        Path(path).write_text(f"{count} schemas, {refused} more refused, {cut} cut by length\n")


@pytest.mark.parametrize("overlap", [False, True])
def test_every_kind_is_obeyed(overlap: bool) -> None:
    """Regex, choice, Lark, GBNF and any object, in one batch with free answers, which stay what they are alone."""
    kinds = [
        {"regex": r"[a-c]{3,6}-\d\d"},
        {"choice": ["yes", "no", 'may "be"']},
        {"grammar": 'start: item ("," item){0,3}\nitem: /[0-9]{1,3}/ | "x"'},
        {"grammar": 'root ::= "<" [a-z] [a-z]? ">"'},
        {"json": PERSON},
        None,
    ]
    options: dict[str, Any] = {
        "max_num_seqs": 8,
        "num_kv_blocks": 40,
        "admission": "greedy",
        "dtype": "float32",
    }
    with LLM("stoker-demo", overlap=overlap, **options) as llm:
        params = [
            SamplingParams(max_tokens=120, seed=i, structured_outputs=kinds[i % 6])  # type: ignore[arg-type]
            for i in range(24)
        ]
        outs = llm.generate([PROMPT] * 24, params, use_tqdm=False)
        alone = llm.generate(PROMPT, params[5], use_tqdm=False)[0].outputs[0]
        assert llm.engine.stats().num_preemptions > 0
    answers = [out.outputs[0] for out in outs]
    assert all(answer.finish_reason == "stop" for i, answer in enumerate(answers) if i % 6 < 4)
    for i in range(0, 24, 6):
        assert re.fullmatch(r"[a-c]{3,6}-\d\d", answers[i].text)
        assert answers[i + 1].text in ("yes", "no", 'may "be"')
        assert re.fullmatch(r"(\d{1,3}|x)(,(\d{1,3}|x)){0,3}", answers[i + 2].text)
        assert re.fullmatch(r"<[a-z][a-z]?>", answers[i + 3].text)
        if answers[i + 4].finish_reason == "stop":
            jsonschema.validate(json.loads(answers[i + 4].text), PERSON)
    assert answers[5].token_ids == alone.token_ids


def test_siblings_go_their_own_ways(llm: LLM) -> None:
    """n answers share a grammar and no state."""
    found = texts(llm, 2, n=6, structured_outputs={"regex": r"\d{6}"})
    assert all(re.fullmatch(r"\d{6}", text) for text, _ in found)
    assert len({text for text, _ in found}) > 4


def test_ends_come_where_the_grammar_accepts(llm: LLM) -> None:
    """min_tokens, ignore_eos and stop tokens bend to the grammar: none cuts an answer short, none leaves it without an end."""
    digits = {"regex": r"\d{1,40}"}
    lengths = [len(text) for text, _ in texts(llm, 8, structured_outputs=digits)]
    assert min(lengths) < 10
    for text, end in texts(llm, 8, structured_outputs=digits, min_tokens=12):
        assert end == "stop"
        assert len(text) >= 12
    for text, end in texts(llm, 8, structured_outputs=digits, ignore_eos=True):
        assert (len(text), end) == (40, "stop")
    # The grammar is over before min_tokens: the answer ends all the same.
    assert set(texts(llm, 4, structured_outputs={"choice": ["no"]}, min_tokens=30)) == {("no", "stop")}
    comma = llm.get_tokenizer().encode(",")[-1]
    for text, _ in texts(llm, 8, structured_outputs={"regex": r"(\d\d)+"}, stop_token_ids=[comma]):
        assert re.fullmatch(r"(\d\d)+", text.rstrip(","))


def test_a_wrong_grammar_is_an_error_of_its_request(llm: LLM) -> None:
    """With the compiler's words, before anything runs; and the same grammar is wrong again the next time."""
    for wrong, words in [
        ({"regex": "a(b"}, "unclosed group"),
        ({"json": {"type": "nothing"}}, "Invalid type"),
        ({"json": {"const": 2**60 + 1}}, "exact up to"),
        ({"grammar": "start: missing"}, "unknown name"),
        ({"grammar": 'root ::= ( "a"'}, "GBNF"),
    ]:
        for _ in range(2):
            with pytest.raises(ValueError, match=words):
                texts(llm, 1, structured_outputs=wrong)
    with pytest.raises(ValueError, match="exactly one of json, regex"):
        SamplingParams(structured_outputs={"regex": "a", "choice": ["b"]})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no field schema"):
        SamplingParams(structured_outputs={"schema": {}})  # type: ignore[arg-type]
    assert not llm.engine._grammars._uses


def test_what_takes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that hangs costs its own request alone."""
    monkeypatch.setattr(grammars, "COMPILE_SECONDS", 0.2)
    with LLM("stoker-demo", max_num_seqs=4) as llm:
        slow = llm.engine._grammars._compile
        release = __import__("threading").Event()
        monkeypatch.setattr(llm.engine._grammars, "_compile", lambda *args: (release.wait(20), slow(*args)))
        params = [SamplingParams(max_tokens=8), SamplingParams(structured_outputs={"regex": "a+"})]  # type: ignore[arg-type]
        outs = llm.generate([PROMPT] * 2, params, use_tqdm=False)
        release.set()
        assert outs[0].outputs[0].finish_reason == "length"
        assert outs[1].outputs[0].finish_reason == "error"


def test_grammars_are_compiled_once_and_uses_end(llm: LLM) -> None:
    """The cache is by text; nothing of a request stays behind it."""
    for _ in range(3):
        texts(llm, 4, structured_outputs={"regex": "[xyz]{3}"})
    assert sum("[xyz]{3}" in source for source in llm.engine._grammars._cache) == 1
    assert not llm.engine._grammars._uses
    assert not llm.engine._grammars._matchers


def test_abort_under_a_grammar_leaves_nothing() -> None:
    """Consumers that walk away at any time, waiting for the grammar or running."""

    async def main() -> None:
        async with AsyncLLM("stoker-demo", max_num_seqs=4) as llm:

            async def one(i: int) -> None:
                asked = {"regex": f"[ab]{{{200 + i}}}"}
                stream = llm.generate(PROMPT, SamplingParams(max_tokens=300, structured_outputs=asked))  # type: ignore[arg-type]
                try:
                    for _ in range(i % 5):
                        await anext(stream)
                finally:
                    await stream.aclose()

            await asyncio.gather(*(one(i) for i in range(20)))
            for _ in range(200):
                if not llm.engine._grammars._uses:
                    break
                await asyncio.sleep(0.02)
            assert not llm.engine._grammars._uses
            assert not llm.engine._grammars._matchers
            stats = llm.engine.stats()
            assert stats.num_running == stats.num_waiting == 0

    asyncio.run(main())
