"""`stoker bench serve`: every request is sent when it should be, counted once, and what it reports is what came."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import pytest

from stoker.cli import bench_serve, main
from stoker.cli.bench_client import Answer
from support.server_process import RunningServer


def bench(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    """Runs the command; its JSON."""
    assert main(["bench", "serve", "--json", "-", *options]) == 0
    return dict(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_all_requests_are_answered_and_counted(
    server: RunningServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    """Both endpoints, at a rate and with a limit on how many at once."""
    monkeypatch.setattr(bench_serve, "_WORDS", ["hello"])  # the fake engine knows few tokens
    sizes = ("--num-prompts", "30", "--input-dist", "uniform:2:9", "--output-len", "7")
    pace = ("--rate", "300", "--concurrency", "10", "--slo", "ttft:20000", "e2e:20000")
    figures = bench(capsys, "--url", server.url, "--endpoint", endpoint, *sizes, *pace)
    result = figures["results"][0]
    assert (figures["model"], result["requests"], figures["errors"]) == ("m", 30, {})
    assert round(result["output_tokens_per_second"] * result["seconds"]) == 30 * 7
    assert result["goodput_share"] == 1.0
    assert 0 < result["ttft_p50"] <= result["ttft_p99"] <= result["e2e_p99"]


def test_failures_are_counted_and_named(server: RunningServer, capsys: pytest.CaptureFixture[str]) -> None:
    """A refused request is in no percentile, and its words are shown."""
    figures = bench(capsys, "--url", server.url, "--num-prompts", "3", "--extra-body", '{"n": 0}')
    assert figures["results"][0]["failed"] == 3
    assert "ttft_p50" not in figures["results"][0]
    ((words, count),) = figures["errors"].items()
    assert "HTTP 400" in words
    assert count == 3


def test_bad_options_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """What was given, what is allowed, exit code 2."""
    for options, words in [
        (["--url", "nowhere"], "no URL"),
        (["--url", "http://127.0.0.1:9"], "Connect call failed"),
        (["--slo", "speed:3"], "ttft:MS"),
        (["--input-dist", "zipf:2"], "lognormal"),
        (["--rate", "0"], "above 0"),
        (["--trace", "/no/such/file"], "No such file"),
    ]:
        assert main(["bench", "serve", *options]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1


def test_traces_of_both_kinds(tmp_path: Path) -> None:
    """Mooncake's shared blocks become shared prompts; Azure's times become seconds from the start."""
    mooncake = tmp_path / "trace.jsonl"
    lines = [
        {"timestamp": 1000, "input_length": 1100, "output_length": 5, "hash_ids": [1, 2, 3]},
        {"timestamp": 1500, "input_length": 1030, "output_length": 0, "hash_ids": [1, 2, 9]},
    ]
    mooncake.write_text("\n".join(map(json.dumps, lines)))
    jobs = list(bench_serve._trace(mooncake, 10, 2.0))
    assert [(job.at, job.input_len, job.output_len) for job in jobs] == [(0, 1100, 5), (0.25, 1030, 1)]
    args = argparse.Namespace(seed=0, endpoint="completions", stop_at_eos=False, extra_body={})
    prompts = [json.loads(bench_serve.body_of(args, "m", job, i))["prompt"] for i, job in enumerate(jobs)]
    assert [len(prompt) for prompt in prompts] == [1100, 1030]
    assert prompts[0][:1024] == prompts[1][:1024]
    assert prompts[0][1024:1030] != prompts[1][1024:1030]
    azure = tmp_path / "trace.csv"
    azure.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:05.2299600,110,27\n"
    )
    jobs = list(bench_serve._trace(azure, 10, 1.0))
    assert [(round(job.at, 3), job.input_len, job.output_len) for job in jobs] == [
        (0, 4808, 10),
        (1.25, 110, 27),
    ]
    azure.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="neither Mooncake's JSONL nor Azure's CSV"):
        list(bench_serve._trace(azure, 10, 1.0))


def test_gaps_and_lengths_have_their_means() -> None:
    """Arrivals of every kind come at the rate that was asked for."""
    rng = random.Random(0)
    for kind, burstiness in (("poisson", 1.0), ("gamma", 0.3), ("gamma", 5.0), ("constant", 1.0)):
        gaps = [bench_serve.gap(kind, 20.0, burstiness, rng) for _ in range(20000)]
        assert sum(gaps) / len(gaps) == pytest.approx(1 / 20, rel=0.05)
    draw = bench_serve.lengths("--x", "normal:50:10", rng)
    assert sum(draw() for _ in range(5000)) / 5000 == pytest.approx(50, rel=0.02)
    assert {bench_serve.lengths("--x", "17", rng)() for _ in range(5)} == {17}


def test_goodput_counts_what_meets_every_limit() -> None:
    """One slow first token or one slow mean gap is enough to fall out."""
    answers = [
        Answer(started=0.0, frames=[0.1, 0.2, 0.3], output_tokens=3),
        Answer(started=0.0, frames=[0.9, 1.0, 1.1], output_tokens=3),
        Answer(started=0.0, frames=[0.1, 0.6, 1.1], output_tokens=3),
        Answer(started=0.0, error="no"),
    ]
    figures = bench_serve.report(answers, 2.0, {"ttft": 0.5, "itl": 0.2})
    assert figures["goodput_share"] == 0.25
    assert figures["goodput_requests_per_second"] == 0.5
    assert figures["itl_p50"] == pytest.approx(0.1)
    assert bench_serve.percentile([3.0, 1.0, 2.0], 50) == 2.0
