"""`stoker generate`: where prompts come from, how answers are shown, exit codes. The engine answers with the prompt."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from stoker.cli import main
from stoker.llm import LLM
from support.fake_engine import FakeEngine
from support.letters import echo_engine, letters_tokenizer


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    tokenizer = letters_tokenizer()
    engine = echo_engine(tokenizer)
    engine.generation_config.defaults.clear()

    def make(model: str, **options: Any) -> LLM:
        assert model == "stoker-demo"
        assert options == {}
        return LLM.from_engine(engine, tokenizer)  # type: ignore[arg-type]

    monkeypatch.setattr("stoker.llm.LLM", make)
    return engine


def stdin(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_one_prompt_is_answered_plainly(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    """The answer and nothing else, so that it can be piped."""
    assert main(["generate", "hello"]) == 0
    assert capsys.readouterr().out == "hello\n"
    assert main(["generate", "hello", "--max-tokens", "2", "--no-stream"]) == 0
    assert capsys.readouterr().out == "he\n"
    assert engine.closed


def test_several_prompts_come_in_order_whatever_their_length(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each with its prompt above it; no text of one in another's."""
    expected = "--- a long prompt\na long prompt\n--- b\nb\n--- middle\nmiddle\n"
    for options in ([], ["--no-stream"]):
        assert main(["generate", "a long prompt", "b", "middle", *options]) == 0
        assert capsys.readouterr().out == expected
    assert main(["generate", "ab", "--n", "2"]) == 0
    assert capsys.readouterr().out == "--- ab [0]\nab\n--- ab [1]\nab1\n"


def test_prompts_from_stdin_and_file(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A line is a prompt, a JSON line may hold token ids, `--whole` takes all as one."""
    stdin(monkeypatch, "first\n\nsecond\n")
    assert main(["generate"]) == 0
    assert capsys.readouterr().out == "--- first\nfirst\n--- second\nsecond\n"
    stdin(monkeypatch, "a\nb")
    assert main(["generate", "--file", "-", "--whole"]) == 0
    assert capsys.readouterr().out == "a\nb\n"
    file = tmp_path / "prompts.jsonl"
    ids = letters_tokenizer().encode("ids")
    file.write_text(json.dumps({"prompt_token_ids": ids}) + "\n{not json}\n")
    assert main(["generate", "-f", str(file), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted((line["index"], line["outputs"][0]["text"]) for line in lines) == [
        (0, "ids"),
        (1, "{not json}"),
    ]


def test_json_has_the_account(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    """One object a prompt: texts, tokens, why it ended, timings."""
    assert main(["generate", "abcSTOPd", "--json", "--stop", "STOP", "--logprobs", "0"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    entry = json.loads(line)
    (answer,) = entry["outputs"]
    assert (answer["text"], answer["finish_reason"], answer["stop_reason"]) == ("abc", "stop", "STOP")
    assert len(answer["logprobs"]) == len(answer["token_ids"]) == 7
    assert entry["num_prompt_tokens"] == 8
    assert entry["seconds"]["latency"] >= 0


def test_chat_uses_the_template(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    """`--chat` makes a user's message of each prompt."""
    assert main(["generate", "hi", "--chat"]) == 0
    assert capsys.readouterr().out == "u:hi|a:\n"


@pytest.mark.parametrize(
    ("argv", "text", "message"),
    [
        (["generate"], "", "no prompt was given"),
        (["generate", "", "x"], "", r"prompts[0]: the prompt is an empty string"),
        (["generate", "x", "y" * 70], "", r"prompts[1]: the prompt has 70 tokens, at most 63"),
        (["generate"], '{"prompt": 3}\n', "prompts[0]: 'prompt' must be a string"),
        (["generate", "--chat"], '{"prompt": "x"}\n', "--chat needs texts"),
    ],
)
def test_bad_prompts_are_one_line_and_exit_code_2(
    engine: FakeEngine,
    argv: list[str],
    text: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is generated for anyone."""
    stdin(monkeypatch, text)
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_an_error_in_an_answer_is_exit_code_1(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    """The other answers are still shown."""
    engine.fail_on = letters_tokenizer().encode("X")[0]
    assert main(["generate", "aX", "fine"]) == 1
    captured = capsys.readouterr()
    assert "--- fine\nfine\n" in captured.out
    assert "NaN logits" in captured.err


def test_a_closed_pipe_is_no_error(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """`stoker generate ... | head -1` ends quietly, and the request with it."""
    monkeypatch.setattr("stoker.cli.generate._write", lambda text: (_ for _ in ()).throw(BrokenPipeError()))
    monkeypatch.setattr("os.dup2", lambda *_: None)
    assert main(["generate", "hello"]) == 0
    assert not engine.running
