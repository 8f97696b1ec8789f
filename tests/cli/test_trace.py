"""`stoker trace` and the two measurements that are made of traces, on the embedded model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stoker.cli import main


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two prompts."""
    folder = tmp_path_factory.mktemp("trace")
    (folder / "prompts.txt").write_text("Once upon a time\n\nThere was a fox\n")
    out = folder / "run.jsonl"
    arguments = ["trace", "record", str(out), "--file", str(folder / "prompts.txt"), "--max-tokens", "5"]
    assert main([*arguments, "--num-kv-blocks", "32"]) == 0
    return out


def test_show(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both tables, and the figures above them."""
    assert main(["trace", "show", str(recorded)]) == 0
    assert "2 requests" in capsys.readouterr().out
    assert main(["trace", "show", str(recorded), "--reqs"]) == 0
    assert capsys.readouterr().out.count("length") == 2


def test_plot_and_export(recorded: Path, tmp_path: Path) -> None:
    """A picture and a Perfetto file of a real run."""
    pytest.importorskip("matplotlib")
    picture, events = tmp_path / "x.png", tmp_path / "x.json"
    assert main(["trace", "plot", str(recorded), "-o", str(picture)]) == 0
    assert picture.read_bytes()[1:4] == b"PNG"
    assert main(["trace", "export", str(recorded), "-o", str(events)]) == 0
    assert len(json.loads(events.read_text())["traceEvents"]) > 20


def test_replay_and_redact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run's event log runs again to the same batches; redacted too; changed it does not, and the exit code says so."""
    log, clean, broken = tmp_path / "run.log", tmp_path / "clean.log", tmp_path / "broken.log"
    arguments = [
        "generate",
        "Once upon a time",
        "There was a fox",
        "--max-tokens",
        "5",
        "--event-log",
        str(log),
    ]
    assert main([*arguments, "--num-kv-blocks", "32"]) == 0
    capsys.readouterr()
    assert main(["trace", "replay", str(log), "--redact", str(clean)]) == 0
    assert "the same batches, byte for byte" in capsys.readouterr().out
    assert main(["trace", "replay", str(clean), "--check"]) == 0
    assert "the same batches\n" in capsys.readouterr().out
    data = bytearray(log.read_bytes())
    # Of the last schedule() (a record of kind 3) that launched: its digests are not 0.
    schedules = [
        i for i in range(len(data) - 25) if data[i] == 3 and data[i + 25] == 4 and any(data[i + 9 : i + 25])
    ]
    data[schedules[-1] + 10] ^= 1
    broken.write_bytes(data)
    assert main(["trace", "replay", str(broken)]) == 1
    assert "comes out differently: other decisions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["replay", "nowhere.log"], "nowhere.log: No such file"),
        (["show", "nowhere.jsonl"], "nowhere.jsonl: No such file"),
        (["plot", "x.jsonl", "-o", "x.gif"], "must end in one of .png"),
        (["plot", "x.jsonl", "-o", "no/such/x.png"], "there is no folder"),
        (["record", "x.jsonl", "--requests", "0"], "at least 1"),
        (["record", "x.jsonl", "--file", "nowhere.txt"], "nowhere.txt: No such file"),
    ],
)
def test_bad_input(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line and exit code 2, before a model is loaded."""
    assert main(["trace", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_phases(capsys: pytest.CaptureFixture[str]) -> None:
    """Decode does less arithmetic for a byte than prefill, and more with more requests at once: counts, not times."""
    sizes = ["--input-len", "64", "--output-len", "4", "--repeat", "1", "--batch-size", "1", "4"]
    assert main(["bench", "phases", *sizes, "--num-kv-blocks", "64", "--json", "-"]) == 0
    rows = {row["phase"]: row for row in json.loads(capsys.readouterr().out)["results"]}
    intensity = {name: row["FLOP_a_byte"] for name, row in rows.items()}
    assert intensity["decode x1"] < intensity["decode x4"] < intensity["prefill x1"]
    assert rows["decode x4"]["tokens_a_step"] == 4
    assert rows["prefill x1"]["tokens_a_step"] == 64


def test_batching(capsys: pytest.CaptureFixture[str]) -> None:
    """Three modes, the same tokens; static takes the most steps."""
    sizes = ["--input-len", "16", "--output-len", "8", "--num-prompts", "6", "--repeat", "1"]
    limits = ["--max-num-seqs", "2", "--num-kv-blocks", "64"]
    assert main(["bench", "batching", *sizes, *limits, "--json", "-"]) == 0
    rows = {row["batching"]: row for row in json.loads(capsys.readouterr().out)["results"]}
    assert rows["static"]["steps"] > rows["continuous"]["steps"]
