"""`stoker demo` on a scripted engine: the show runs to its end, counts what is right, and draws what happened."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from stoker import demo_model
from stoker.cli import main
from stoker.cli.demo_load import LiveRun, make_requests
from stoker.cli.demo_view import Meter, Shown, Span, lanes, plain_line, seats_picture
from stoker.llm import LLM
from stoker.text import Tokenizer
from support.fake_engine import FakeEngine


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(demo_model.CHECKPOINT)


def demo_engine(tokenizer: Tokenizer, wrong: int) -> FakeEngine:
    """Knows the answer of every recall prompt of seed 7, but the first `wrong` of them; tells a story otherwise."""
    answers = {}
    for place, recall in enumerate(demo_model.recall_prompts(5, 7, min_tokens=60, max_tokens=448)):
        text = " nothing" if place < wrong else f" {recall.answer}"
        answers[tuple(tokenizer.encode(recall.prompt))] = tokenizer.encode(text + "\n")
    story = tokenizer.encode(" and then the fox walked home.")
    engine = FakeEngine(lambda prompt, index: answers.get(tuple(prompt), story), vocab_size=10**6)
    engine.max_model_len = 512
    engine.model_config = SimpleNamespace(num_hidden_layers=2, hidden_size=64)  # type: ignore[attr-defined]
    return engine


def shown(llm: LLM, count: int = 8) -> list[Shown]:
    return [Shown(request) for request in make_requests(llm, count, 7, 1.0, 448)]


@pytest.fixture
def llm(tokenizer: Tokenizer) -> LLM:
    return LLM.from_engine(demo_engine(tokenizer, wrong=0), tokenizer)  # type: ignore[arg-type]


def test_the_show_runs_to_its_end(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines where there is no terminal; texts, the share of right answers, and the ratio of the batching modes at the end."""
    made: list[dict[str, Any]] = []

    def make(model: str, **options: Any) -> LLM:
        made.append(options)
        return LLM.from_engine(demo_engine(tokenizer, wrong=1), tokenizer)  # type: ignore[arg-type]

    monkeypatch.setattr("stoker.llm.LLM", make)
    assert main(["demo", "--requests", "8", "--seconds", "0.2", "--max-num-seqs", "4"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "4 of 5 answers right: 80%" in out
    assert "done 8" in out
    assert "and then the fox walked home" in out
    assert "continuous / static:" in out
    assert "8 of 8 texts are the same in all modes" in out
    modes = ["static", "prefill_first", "continuous"]
    assert [options.get("batching") for options in made] == [None, *modes, *modes]
    assert made[0]["max_num_seqs"] == 4


def test_requests_are_the_same_for_the_same_seed(llm: LLM) -> None:
    """Stories and recall tasks of many lengths, in order of arrival; the race runs what the show ran."""
    requests = make_requests(llm, 32, 7, 8.0, 448)
    assert requests == make_requests(llm, 32, 7, 8.0, 448)
    assert [request.number for request in requests] == list(range(1, 33))
    assert sorted(request.arrival for request in requests) == [request.arrival for request in requests]
    assert sum(request.kind == "recall" for request in requests) == 20
    assert len({request.num_prompt_tokens for request in requests}) > 20


def test_each_request_walks_through_the_lanes_and_ends_once(llm: LLM) -> None:
    """What the view shows follows from the engine's news; a run that is left early leaves nothing behind."""
    live = LiveRun(llm, make_requests(llm, 8, 7, 0.05, 448))
    seen: dict[int, list[str]] = {}

    def look(now: float) -> None:
        for s in live.shown:
            lanes_of = seen.setdefault(s.request.number, [])
            if not lanes_of or lanes_of[-1] != s.lane:
                lanes_of.append(s.lane)

    live.run(look)
    order = ["coming", "waiting", "prefill", "decode", "done"]
    for walked in seen.values():
        assert walked == sorted(walked, key=order.index)
        assert walked[-1] == "done"
    assert live.num_tokens == sum(s.num_tokens for s in live.shown) > 0
    left = LiveRun(llm, make_requests(llm, 8, 7, 0.0, 448))
    with pytest.raises(KeyboardInterrupt):
        left.run(lambda now: (_ for _ in ()).throw(KeyboardInterrupt()))
    assert not llm.engine.has_unfinished()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_view_fits_the_terminal(llm: LLM, width: int) -> None:
    """Every lane with its count, no line broken or cut; where there is no room for lanes, one line."""
    all_shown = shown(llm)
    for place, lane in enumerate(["waiting"] * 3 + ["prefill"] + ["decode"] * 2 + ["done"] * 2):
        all_shown[place].lane = lane
        all_shown[place].text = "line one\nline two is long enough to be cut somewhere " * 4
        all_shown[place].num_tokens = 500
    meter = Meter()
    for tenth in range(30):
        meter.sample(tenth / 10, tenth * tenth)
    console = Console(width=width, height=30, record=True, file=io.StringIO())
    console.print(lanes(all_shown, llm.engine.stats(), meter, 3.0, 4, width))
    text = console.export_text()
    words = " ".join(text.split())
    if width < 74:
        assert words.startswith("3.0 s waiting 3 prefill 1 decode 2 done 2")
        return
    assert all(name in words for name in ("waiting 3", "prefill 1", "decode 2", "done 2"))
    assert all(len(line) <= width for line in text.splitlines())
    assert len(text.splitlines()) <= 4 + 2 + 3
    assert "waiting  3" in plain_line(all_shown, llm.engine.stats(), 5.0, 1.0)


def test_the_meter_forgets_the_past() -> None:
    """Tokens a second of the last half second."""
    meter = Meter()
    for step in range(11):
        rate = meter.sample(step / 10, step * 10)
    assert rate == pytest.approx(100)
    for step in range(11, 20):
        rate = meter.sample(step / 10, 100)
    assert rate == 0


def test_the_picture_of_the_seats() -> None:
    """Four requests on two seats: each is drawn where and when it ran, an empty seat stays empty."""
    spans = [Span("story", 0, 1, 6), Span("recall", 0, 1, 3), Span("recall", 3, 4, 5), Span("story", 6, 7, 9)]
    rows = [row.plain for row in seats_picture(spans, 2, 10.0, 10)]
    assert rows == ["▒█████▒██·", "▒██▒█·····"] or rows == ["▒█████····", "▒██▒█·▒██·"]
