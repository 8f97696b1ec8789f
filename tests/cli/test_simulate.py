"""`stoker simulate`: figures come out as JSON, table and picture; bad input is told in one line before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stoker.cli import main

RUN = ["simulate", "--model", "qwen3-0.6b", "--rate", "50", "--num-reqs", "60", "--num-kv-blocks", "2000"]


def figures(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main([*words, "--json", "-"]) == 0
    out: dict[str, Any] = json.loads(capsys.readouterr().out)
    return out


def test_a_run_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Percentiles in their order, goodput, KV use; equal seeds are equal to the byte."""
    slo = ("--slo-ttft", "0.1", "--slo-itl", "0.01")
    found = figures(capsys, *RUN, *slo)
    for name in ("ttft", "itl", "e2e"):
        values = [found[name][key] for key in ("p50", "p90", "p99", "max")]
        assert values == sorted(values)
        assert values[0] > 0
    assert found["output_tokens"] == 60 * 128
    assert 0 < found["kv_use_mean"] <= found["kv_use_max"] <= 1
    assert 0 < found["slo"]["share"] <= 1
    assert json.dumps(figures(capsys, *RUN, *slo)) == json.dumps(found)
    assert json.dumps(figures(capsys, *RUN, *slo, "--seed", "1")) != json.dumps(found)


def test_a_run_as_table_picture_and_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A simulated run can be looked at with `stoker trace` like a real one."""
    picture, trace = tmp_path / "run.png", tmp_path / "run.jsonl"
    assert main([*RUN, "--plot", str(picture), "--record", str(trace)]) == 0
    out = capsys.readouterr().out
    assert "time to first token" in out
    assert "60 requests" in out
    assert picture.stat().st_size > 10_000
    assert main(["trace", "show", str(trace), "--last", "3"]) == 0
    assert "60 requests" in capsys.readouterr().out


def test_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every combination, on two processes as on one; with a picture."""
    words = (
        *RUN[:1],
        "sweep",
        *RUN[1:],
        "--vary",
        "batching=static,continuous",
        "--vary",
        "max-num-seqs=2,8",
    )
    found = figures(capsys, *words, "--workers", "2", "--plot", str(tmp_path / "sweep.svg"))
    rows = {(row["batching"], row["max_num_seqs"]): row["output_tokens_per_s"] for row in found["results"]}
    assert len(rows) == 4
    assert rows["continuous", 8] > rows["static", 8] > rows["static", 2]
    assert figures(capsys, *words, "--workers", "1")["results"] == found["results"]


def test_searches(capsys: pytest.CaptureFixture[str]) -> None:
    """The highest rate within a level, and the replicas for a rate."""
    words = (
        *RUN[:1],
        "sweep",
        "--model",
        "qwen3-0.6b",
        "--num-kv-blocks",
        "500",
        "--num-reqs",
        "80",
        "--slo-ttft",
        "0.05",
    )
    rate = figures(capsys, *words, "--find", "rate", "--workers", "1")["results"][0]["rate"]
    assert rate > 1
    replicas = figures(capsys, *words, "--find", "replicas", "--rate", str(3 * rate), "--workers", "1")
    assert replicas["results"][0]["replicas"] in (2, 3, 4)


def test_fit_and_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model fitted to a trace predicts the run that it was fitted to; the engine's sizes come with it."""
    trace, cost = tmp_path / "run.jsonl.gz", tmp_path / "cost.json"
    assert main([*RUN, "--record", str(trace)]) == 0
    assert main(["simulate", "fit", str(trace), "-o", str(cost)]) == 0
    assert "fitted to" in capsys.readouterr().out
    true = figures(capsys, *RUN)
    fitted = figures(capsys, "simulate", "--cost", str(cost), *RUN[3:])
    assert fitted["e2e"]["mean"] == pytest.approx(true["e2e"]["mean"], rel=0.03)
    assert fitted["kv_use_mean"] == pytest.approx(true["kv_use_mean"], rel=0.05)


def test_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Says that the batches are the same; exit code 1 where they are not."""
    path = tmp_path / "run.jsonl"
    assert main([*RUN, "--record", str(path)]) == 0
    assert main(["simulate", "replay", str(path)]) == 0
    assert "the same batches" in capsys.readouterr().out
    lines = path.read_text().splitlines()
    changed = [line.replace('"max_num_seqs":256', '"max_num_seqs":1') for line in lines[:1]] + lines[1:]
    steps = [line for line in changed if line.startswith('{"step"')]
    path.write_text("\n".join([*changed, *steps[-1:] * 10_000]) + "\n")
    assert main(["simulate", "replay", str(path)]) == 1
    out = capsys.readouterr().out
    assert "differs" in out
    assert "a trace holds no tokens" not in out
    assert main([*RUN, "--prefix-len", "64", "--record", str(path)]) == 0
    assert main(["simulate", "replay", str(path)]) == 1
    assert "requests found tokens in the prefix cache: a trace holds no tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model", "qwen3-0.6b"], "say what comes: --rate"),
        (["--rate", "1"], "say what serves: --model"),
        (["--rate", "0", "--model", "qwen3-0.6b"], "rate 0.0: must be above 0"),
        (["--rate", "1", "--model", "nothing"], "--model nothing: no such file or folder; allowed are"),
        (
            ["--rate", "1", "--model", "qwen3-0.6b", "--device", "b9"],
            "device 'b9' is not known; allowed are h200",
        ),
        (["--rate", "1", "--model", "llama-3.1-70b"], "GiB of weights leave no room for KV"),
        (
            ["--rate", "1", "--model", "qwen3-0.6b", "--prompt-len", "many"],
            "lengths 'many': allowed are N, uniform",
        ),
        (["--rate", "1", "--model", "qwen3-0.6b", "--plot", "x.gif"], "must end in one of .png"),
        (
            ["--rate", "1", "--model", "qwen3-0.6b", "--option", "colour=1"],
            "'colour' cannot be varied; allowed are",
        ),
        (["--rate", "1", "--model", "qwen3-0.6b", "--schedule-policy", "best"], "best"),
        (["--rate", "1", "--model", "qwen3-0.6b", "--autoscale", "3"], "--autoscale 3: must be MIN:MAX"),
        (
            ["--rate", "1", "--model", "qwen3-0.6b", "--prompt-len", "5000", "--num-kv-blocks", "100"],
            "request 0: a prompt of 5000 tokens",
        ),
    ],
)
def test_bad_input_is_one_line(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It says what was given and what is allowed."""
    assert main(["simulate", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("stoker simulate: error: ")
    assert says in error
    assert error.count("\n") == 1


def test_an_impossible_line_of_a_trace_is_named_or_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the run, by file and line."""
    path = tmp_path / "long.jsonl"
    path.write_text(
        '{"timestamp": 0, "input_length": 50, "output_length": 5}\n{"timestamp": 9, "input_length": 50000, "output_length": 5}\n'
    )
    words = ["simulate", "--model", "qwen3-0.6b", "--num-kv-blocks", "500", "--trace", str(path)]
    assert main(words) == 2
    assert f"{path}, line 2: a prompt of 50000 tokens" in capsys.readouterr().err
    assert figures(capsys, *words, "--skip-impossible")["num_reqs"] == 1
    path.write_text('{"timestamp": 0, "input_length": 50}\n')
    assert main(words) == 2
    assert f"{path}, line 1: output_length is missing" in capsys.readouterr().err
