"""Reasoning and tool calls taken out of answers of the Qwen3, Llama 3 and Mistral formats, however the text is cut."""

from __future__ import annotations

import itertools
import random

import pytest

from stoker.server.parsers import FORMATS, AnswerFormat, ForcedCalls, Piece, format_for, whole_calls

CALL = '{"name": "add", "arguments": {"a": 1, "b": [2, "x"]}}'
LLAMA = '{"name": "add", "parameters": {"a": 1, "b": [2, "x"]}}'
ARGUMENTS = '{"a": 1, "b": [2, "x"]}'
TOOLS = ("add", "sub")

# format, end of the prompt, answer, then what it is: content, reasoning, calls
CASES = [
    ("qwen3", "", "Hello.\n\nBye", ("Hello.\n\nBye", "", [])),
    ("qwen3", "", "<think>\nWell, 1 < 2.\n</think>\n\nYes.", ("Yes.", "Well, 1 < 2.", [])),
    ("qwen3", "<think>\n", "Well.\n</think>\n\nYes.\n", ("Yes.\n", "Well.", [])),
    ("qwen3", "<think>\n", "cut off in thou", ("", "cut off in thou", [])),
    ("qwen3", "", f"<tool_call>\n{CALL}\n</tool_call>", ("", "", [("add", ARGUMENTS)])),
    (
        "qwen3",
        "",
        f"<think>\nuse it\n</think>\n\nI call.\n<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{CALL}\n</tool_call>",
        ("I call.", "use it", [("add", ARGUMENTS)] * 2),
    ),
    ("qwen3", "", "<tool_call>not json</tool_call>", ("<tool_call>not json</tool_call>", "", [])),
    ("qwen3", "", f"<tool_call>\n{CALL}", ("", "", [("add", ARGUMENTS)])),
    ("qwen3", "", "a <tool", ("a <tool", "", [])),
    ("llama3", "", LLAMA, ("", "", [("add", ARGUMENTS)])),
    ("llama3", "", f"{LLAMA}; {LLAMA}", ("", "", [("add", ARGUMENTS)] * 2)),
    ("llama3", "", f"<|python_tag|>{LLAMA}", ("", "", [("add", ARGUMENTS)])),
    (
        "llama3",
        "",
        '{"name": "unknown", "parameters": {}}',
        ('{"name": "unknown", "parameters": {}}', "", []),
    ),
    ("llama3", "", '{"answer": 42}', ('{"answer": 42}', "", [])),
    ("llama3", "", "Just text {", ("Just text {", "", [])),
    ("mistral", "", f"[TOOL_CALLS][{CALL}, {CALL}]", ("", "", [("add", ARGUMENTS)] * 2)),
    (
        "mistral",
        "",
        f"[THINK]hm[/THINK]So: [TOOL_CALLS]add[ARGS]{ARGUMENTS}[TOOL_CALLS]sub[CALL_ID]abc[ARGS]{{}}",
        ("So: ", "hm", [("add", ARGUMENTS), ("sub", "{}")]),
    ),
    ("none", "", "<think>x</think>", ("<think>x</think>", "", [])),
    (
        "qwen3",
        "",
        '<tool_call>{"arguments": {"a": 1}, "name": "add"}</tool_call>',
        ("", "", [("add", '{"a": 1}')]),
    ),
    (
        "qwen3",
        "",
        '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>',
        ("", "", [("add", '{"a": 1}')]),
    ),
    ("qwen3", "", '<tool_call>{"name": "add"}</tool_call>', ("", "", [("add", "{}")])),
    (
        "qwen3",
        "",
        '<tool_call>{"name": "add", "arguments": {"a": "}\\"{',
        ("", "", [("add", '{"a": "}\\"{')]),
    ),
    ("qwen3", "", '<tool_call>{"name": "ad', ('<tool_call>{"name": "ad', "", [])),
    ("llama3", "", '{"type": "function", "name": "add", "parameters": null}', ("", "", [("add", "null")])),
    ("llama3", "", f"{LLAMA} and so on", (" and so on", "", [("add", ARGUMENTS)])),
    ("llama3", "", '[{"name": 3}]', ('[{"name": 3}]', "", [])),
]


def put_together(pieces: list[Piece]) -> tuple[str, str, list[tuple[str, str]]]:
    begun = [piece.call.index for piece in pieces if piece.call is not None and piece.call.first]
    calls = whole_calls(pieces)
    assert begun == [call.index for call in calls]
    assert [call.index for call in calls] == list(range(len(calls)))
    assert len({call.id for call in calls}) == len(calls)
    return (
        "".join(piece.content for piece in pieces),
        "".join(piece.reasoning for piece in pieces),
        [(call.name, call.arguments) for call in calls],
    )


@pytest.mark.parametrize(("name", "prompt", "answer", "wanted"), CASES)
def test_an_answer_is_the_same_however_it_is_cut(
    name: str, prompt: str, answer: str, wanted: tuple[str, str, list[tuple[str, str]]]
) -> None:
    """At once, a character at a time, and in random pieces."""
    rng = random.Random(answer)
    cuts = [[], list(range(1, len(answer)))]
    cuts += [sorted(rng.sample(range(len(answer)), min(len(answer), 4))) for _ in range(20)]
    for cut in cuts:
        parser = FORMATS[name].parser(prompt, TOOLS)
        edges = [0, *cut, len(answer)]
        pieces = [p for a, b in itertools.pairwise(edges) for p in parser.feed(answer[a:b])]
        assert put_together([*pieces, *parser.finish()]) == wanted


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("qwen3", f"<tool_call>\n{CALL}\n</tool_call>"),
        ("llama3", LLAMA),
        ("llama3", f"<|python_tag|>{LLAMA}"),
        ("mistral", f"[TOOL_CALLS][{CALL}]"),
        ("mistral", f"[TOOL_CALLS]add[ARGS]{ARGUMENTS}"),
        ("forced", f"[{CALL}]"),
    ],
)
def test_arguments_come_as_they_grow(name: str, answer: str) -> None:
    """The name is told before the arguments, and every character of them in the feed that brings it."""
    parser = ForcedCalls() if name == "forced" else FORMATS[name].parser("", TOOLS)
    grown, told = "", 0
    begin = answer.index(ARGUMENTS)
    for at, character in enumerate(answer):
        parts = [piece.call for piece in parser.feed(character) if piece.call is not None]
        grown += "".join(part.arguments for part in parts)
        told += sum(part.first and part.name == "add" for part in parts)
        assert grown == answer[begin : at + 1][: len(ARGUMENTS)] if at >= begin else grown == ""
        assert told == 1 or at < begin
    assert parser.finish() == []


def test_json_that_is_no_call_streams_as_text() -> None:
    """An answer in JSON is not held back until its end because it might have been a call."""
    parser = FORMATS["llama3"].parser("", TOOLS)
    assert parser.feed('{"answer":') == [Piece(content='{"answer":')]


def test_without_tools_no_call_is_looked_for() -> None:
    """Markup of calls is text then; reasoning is still told apart."""
    parser = FORMATS["qwen3"].parser("", ())
    text = f"<think>a</think><tool_call>{CALL}</tool_call>"
    assert put_together([*parser.feed(text), *parser.finish()]) == (f"<tool_call>{CALL}</tool_call>", "a", [])


MINE = AnswerFormat(think=("<<", ">>"))


def test_the_format_is_chosen_by_the_template_or_by_name() -> None:
    """A plug-in is an AnswerFormat in any module."""
    assert format_for("auto", ["{{ '<tool_call>' }}"]) is FORMATS["qwen3"]
    assert format_for("auto", ["[TOOL_CALLS]"]) is FORMATS["mistral"]
    assert format_for("auto", ["<|start_header_id|>"]) is FORMATS["llama3"]
    assert format_for("auto", ["plain"]) is FORMATS["none"]
    assert format_for("mistral", ["<tool_call>"]) is FORMATS["mistral"]
    assert format_for(f"{__name__}:MINE", []) is MINE
    for wrong in ("gpt", "json:loads"):
        with pytest.raises(ValueError, match="qwen3"):
            format_for(wrong, [])
