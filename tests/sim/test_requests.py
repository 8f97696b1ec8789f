"""Workloads: what traces and distributions become, and what is said of broken ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stoker.sim.requests import draw_lengths, load_trace, synthetic

MOONCAKE = """{"timestamp": 1000, "input_length": 700, "output_length": 5, "hash_ids": [7, 8]}
{"timestamp": 3500, "input_length": 600, "output_length": 6, "hash_ids": [7, 9]}
"""
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
"""


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_mooncake_trace(tmp_path: Path) -> None:
    """Times from the first request on; equal hash ids share their tokens, up to the prompt's length."""
    made = load_trace(written(tmp_path, "t.jsonl", MOONCAKE))
    assert made.times.tolist() == [0, 2_500_000_000]
    assert made.prompt_lens.tolist() == [700, 600]
    assert made.answer_lens.tolist() == [5, 6]
    first, second = (made.native().prompt(i) for i in range(2))
    assert len(first) == 700
    assert (first[:512] == second[:512]).all()
    assert (first[512:600] != second[512:600]).mean() > 0.9


def test_an_azure_trace(tmp_path: Path) -> None:
    """Nothing is shared."""
    made = load_trace(written(tmp_path, "t.csv", AZURE))
    assert made.times.tolist() == pytest.approx([0, 4_314_579_000], abs=2000)
    assert made.prompt_lens.tolist() == [374, 396]
    assert made.native().prompt(0)[:100].tolist() != made.native().prompt(1)[:100].tolist()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (MOONCAKE + '{"timestamp": 1, "input_length": 5}\n', "line 3: output_length is missing"),
        (MOONCAKE + "not json\n", "line 3: not a line of a Mooncake trace"),
        (MOONCAKE.replace("700", "-1"), "line 1: not a line .*whole numbers of 1 to"),
        (MOONCAKE.replace("700", "3" * 30), "line 1: not a line .*whole numbers of 1 to"),
        (
            MOONCAKE + '{"timestamp": NaN, "input_length": 5, "output_length": 5}\n',
            "line 3: .*timestamp must be",
        ),
        (
            MOONCAKE + '{"timestamp": 1e999, "input_length": 5, "output_length": 5}\n',
            "line 3: .*timestamp must be",
        ),
        (MOONCAKE.replace("[7, 9]", f"[{10**25}]"), "line 2: not a line .*hash_ids"),
        (AZURE + "2023-11-16 18:15:51,3000000000,3\n", "line 4: not a line .*must be 1 to"),
        (MOONCAKE.replace("[7, 9]", '["x"]'), "line 2: not a line .*hash_ids"),
        (AZURE + "2023-11-16 18:15:51,many,3\n", "line 4: not a line of an Azure trace"),
        (AZURE + "2023-11-16 18:15:51,4\n", "line 4: not a line of an Azure trace"),
        ("a,b\n1,2\n", "line 1: neither a Mooncake trace .* nor an Azure trace"),
        (AZURE.splitlines()[0] + "\n", "holds no request"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, text: str, says: str) -> None:
    """File and line, so that it can be found."""
    path = written(tmp_path, "broken.trace", text)
    with pytest.raises(ValueError, match=f"{path}.*{says}"):
        load_trace(path)


@pytest.mark.parametrize("spec", ["", "x", "0", "uniform:5", "uniform:9:3", "lognormal:0:1", "zipf:3", "nan"])
def test_lengths_that_make_no_sense(spec: str) -> None:
    """The error lists what is allowed."""
    with pytest.raises(ValueError, match="allowed are N, uniform"):
        draw_lengths(spec, 3, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("spec", "mean"),
    [
        ("100", 100),
        ("uniform:10:30", 20),
        ("loguniform:32:2048", 485),
        ("lognormal:100:0.5", 113),
        ("exponential:80", 80),
    ],
)
def test_lengths_have_the_mean_of_their_distribution(spec: str, mean: float) -> None:
    """Within the error of 20,000 draws."""
    assert draw_lengths(spec, 20_000, np.random.default_rng(0)).mean() == pytest.approx(mean, rel=0.03)


def test_arrivals_keep_rate_and_burstiness() -> None:
    """The gaps' coefficient of variation is 1 / sqrt(burstiness)."""
    for burstiness in (0.25, 1.0, 4.0):
        gaps = np.diff(synthetic(num_reqs=20_000, rate=50.0, burstiness=burstiness).times) / 1e9
        assert gaps.mean() == pytest.approx(0.02, rel=0.05)
        assert gaps.std() / gaps.mean() == pytest.approx(burstiness**-0.5, rel=0.05)


def test_a_trace_can_be_cut_thinned_and_sped_up(tmp_path: Path) -> None:
    """The prompts' tokens stay with their requests."""
    made = load_trace(written(tmp_path, "t.jsonl", MOONCAKE))
    assert made.faster(2).times.tolist() == [0, 1_250_000_000]
    only = made.without({0})
    assert only.prompt_lens.tolist() == [600]
    assert (only.native().prompt(0) == made.native().prompt(1)).all()
    assert only.where(0).endswith("line 2")
