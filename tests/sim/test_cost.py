"""Cost models: the roofline stands on measured steps, a fit finds back what a trace was made with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stoker._core.sim import CostModel
from stoker.cli.simulate_options import read_model
from stoker.sim import Device, Setting, cost_from_file, kv_blocks, roofline, synthetic
from stoker.sim.cost import cost_dict
from stoker.sim.fit import device_times, fit
from stoker.sim.run import finish, prepare
from stoker.viz.trace import Trace

# Decode steps of this engine on one H200 (workload D: prompts of 512 and 129 new tokens), ms: benchmarks/results/gpu_e2e.md.
MEASURED = {
    "qwen3-0.6b": {1: 0.827, 8: 0.983, 32: 1.51, 64: 2.20, 128: 3.49, 256: 5.78},
    "llama-3.1-8b": {1: 4.05, 8: 4.44, 32: 5.33, 64: 6.18, 128: 8.06, 256: 12.68},
}


@pytest.mark.parametrize("name", list(MEASURED))
def test_the_roofline_of_an_h200_stands_on_measured_steps(name: str) -> None:
    """Within 10% at every batch size, 5% in the mean."""
    cost = roofline(read_model(name), Device.find("h200"))
    errors = []
    for batch, ms in MEASURED[name].items():
        modelled = cost.device_ns(rows=batch, tokens=batch, sampled=batch, decode_kv=batch * (512 + 65)) / 1e6
        errors.append(abs(modelled / ms - 1))
    assert max(errors) < 0.10
    assert sum(errors) / len(errors) < 0.05


def test_a_bigger_device_is_never_slower() -> None:
    """And holds more KV."""
    model = read_model("llama-3.1-8b")
    sizes = {"rows": 64, "tokens": 575, "chunk_rows": 1, "chunk_tokens": 512, "sampled": 64}
    work = {**sizes, "decode_kv": 64_000, "chunk_kv": 2048, "scores": 500_000}
    order = ("h200", "h100", "a100", "l40s")
    times = [roofline(model, Device.find(name)).device_ns(**work) for name in order]
    assert times == sorted(times)
    blocks = [kv_blocks(model, Device.find(name)) for name in ("h200", "h100", "l40s")]
    assert blocks == sorted(blocks, reverse=True)
    with pytest.raises(ValueError, match="GiB of weights leave no room for KV"):
        kv_blocks(read_model("llama-3.1-70b"), Device.find("4090"))


def test_a_device_of_ones_own(tmp_path: Path) -> None:
    """A JSON file with the table's columns; what is missing or unknown is named."""
    row = {**Device.find("a100").peaks._asdict(), "memory_gib": 40}
    path = tmp_path / "a100-40g.json"
    path.write_text(json.dumps(row))
    assert Device.find(str(path)).peaks.memory_gib == 40
    path.write_text(json.dumps({"tflops": 1}))
    with pytest.raises(ValueError, match="must hold tflops, gb_per_s"):
        Device.find(str(path))
    with pytest.raises(ValueError, match="device 'h300' is not known; allowed are h200"):
        Device.find("h300")


def recorded(cost: CostModel, rate: float, seed: int, answers: str = "uniform:1:60") -> Trace:
    requests = synthetic(
        num_reqs=600, rate=rate, prompt_len="loguniform:8:300", output_len=answers, seed=seed
    )
    engine = {"num_blocks": 513, "max_num_seqs": 32, "max_num_batched_tokens": 256, "max_model_len": 1024}
    simulation = prepare(Setting(cost, engine, seed=seed), requests, record=True)
    finish(simulation)
    return Trace.from_recording(simulation.take_recording(), {"config": engine})


def test_a_fit_finds_back_what_a_trace_was_made_with() -> None:
    """From one rate it predicts the steps of another; noise keeps its spread and moves no mean."""
    true = CostModel(step=9e5, token=2e4, row=5e4, decode_kv=150.0, score=20.0, chunk_token=5e3)
    found = fit(recorded(true, 30.0, 1).steps, noise=False).cost
    for work in (
        {"rows": 1, "tokens": 1, "sampled": 1, "decode_kv": 40.0},
        {"rows": 30, "tokens": 30, "sampled": 30, "decode_kv": 6000.0},
        {
            "rows": 4,
            "chunk_rows": 1,
            "tokens": 203,
            "chunk_tokens": 200,
            "sampled": 4,
            "decode_kv": 300.0,
            "scores": 20_000.0,
        },
    ):
        assert found.device_ns(**work) == pytest.approx(true.device_ns(**work), rel=0.02)  # type: ignore[arg-type]
    noisy = CostModel(**{**cost_dict(true), "noise": [0.7, 0.9, 1.0, 1.1, 1.8]})
    trace = recorded(noisy, 30.0, 2)
    again = fit(trace.steps)
    mean = sum(again.cost.noise) / len(again.cost.noise)
    assert again.cost.device_ns(rows=8, tokens=8, sampled=8, decode_kv=1e3) * mean == pytest.approx(
        true.device_ns(rows=8, tokens=8, sampled=8, decode_kv=1e3) * 1.1, rel=0.05
    )


def size_class(tokens: int) -> int:
    """Of a step without a chunk (csrc/sim/cost_model.h)."""
    width = (tokens - 1).bit_length()
    return 2 * (4 * width + (((tokens - 1) >> (width - 3)) & 3 if width >= 3 else 0))


def test_a_fit_keeps_what_the_formula_misses() -> None:
    """Decodes of a size that takes half again as long (another kernel, another graph) keep their mean and their spread, and neither
    other sizes nor the steps with chunks learn of it."""
    plain = CostModel(step=3e6, from_idle=4e5, token=2e4, decode_kv=20.0)
    slow = [1.4, 1.6]
    true = CostModel(**{**cost_dict(plain), "noise_of_size": [[]] * size_class(17) + [slow]})
    found = fit(recorded(true, 150.0, 3).steps).cost
    for rows, ratios in ((18, slow), (15, [1.0]), (23, [1.0])):
        work = {"rows": rows, "tokens": rows, "sampled": rows, "decode_kv": 170.0 * rows}
        made = [found.device_ns(**work) * ratio for ratio in found.noise_of_size[size_class(rows)]]  # type: ignore[arg-type]
        meant = [true.device_ns(**work) * ratio for ratio in ratios]  # type: ignore[arg-type]
        assert sum(made) / len(made) == pytest.approx(sum(meant) / len(meant), rel=0.03)
        assert max(made) == pytest.approx(max(meant), rel=0.05)
    chunk = {
        "rows": 18,
        "chunk_rows": 1,
        "tokens": 77,
        "chunk_tokens": 60,
        "sampled": 18,
        "decode_kv": 2900.0,
    }
    work = {**chunk, "chunk_kv": 60.0, "scores": 1830.0}
    assert found.device_ns(**work) == pytest.approx(true.device_ns(**work), rel=0.05)  # type: ignore[arg-type]


def test_what_a_size_takes_beyond_the_formula_does_not_stretch_with_the_context() -> None:
    """A graph's padding is as long for short contexts as for long ones; and the mean of a size is kept, however steps scatter."""
    beyond = [0.0] * size_class(9) + [2e6]
    true = CostModel(
        step=2e6, token=2e4, decodes_step=1.3e6, decodes_row=5e4, decodes_kv=500.0,
        beyond_of_size=beyond, noise=[0.7, 0.9, 1.0, 1.4],
    )  # fmt: skip
    found = fit(recorded(true, 60.0, 8).steps).cost
    for kv in (1e3, 4e3):
        work = {"rows": 10, "tokens": 10, "sampled": 10, "decode_kv": kv}
        assert found.device_ns(**work) == pytest.approx(true.device_ns(**work), rel=0.05)  # type: ignore[arg-type]
    ratios = found.noise_of_size[size_class(10)]
    assert sum(ratios) / len(ratios) == pytest.approx(1.0)


@pytest.mark.parametrize("num_steps", [300, 511, 700])
def test_the_noise_of_a_size_has_the_mean_of_its_steps(num_steps: int) -> None:
    """However many they are: 300 measured ratios are kept as 256, and none of them weighs more than another."""
    trace = recorded(CostModel(step=2e6, noise=[0.5, 0.7, 0.8, 2.0]), 20.0, 9)
    decodes = [step for step in trace.steps if len(step.rows) == 1 and not step.has_chunk][:num_steps]
    assert len(decodes) == num_steps
    found = fit(decodes).cost
    work = {
        "rows": 1,
        "tokens": 1,
        "sampled": 1,
        "decode_kv": sum(s.rows[0].kv_len for s in decodes) / num_steps,
    }
    ratios = found.noise_of_size[size_class(1)]
    made = [found.device_ns(**work) * ratio for ratio in ratios]  # type: ignore[arg-type]
    took = device_times(decodes)
    assert sum(made) / len(made) == pytest.approx(sum(took) / num_steps, rel=0.002)


def test_decodes_of_a_size_that_was_hardly_seen() -> None:
    """They follow from the smaller ones: a step's own time, a row's and a KV position's are told apart, although a size of its own
    explains each step as well."""
    true = CostModel(
        step=1e6,
        token=1e5,
        score=30.0,
        decodes_step=1.3e6,
        decodes_row=1.2e5,
        decodes_kv=400.0,
        noise=[0.6, 0.8, 0.9, 1.0, 1.1, 1.6],
    )
    trace = recorded(true, 20.0, 6, "uniform:1:12")
    assert max(len(step.rows) for step in trace.steps) < 8, "sizes that were seen often say nothing here"
    found = fit(trace.steps).cost
    for rows in (2, 12, 24):
        work = {"rows": rows, "tokens": rows, "sampled": rows, "decode_kv": 200.0 * rows}
        assert found.device_ns(**work) == pytest.approx(true.device_ns(**work), rel=0.06)  # type: ignore[arg-type]


def test_a_fit_takes_out_how_slow_the_machine_was() -> None:
    """A run whose second half ran on half the machine, told so, gives the model of the whole machine."""
    true = CostModel(step=2e6, token=3e4, decodes_step=1.3e6, decodes_row=1.2e5, decodes_kv=400.0)
    slow = CostModel(**{name: 2 * v if isinstance(v, float) else v for name, v in cost_dict(true).items()})
    first, second = recorded(true, 20.0, 6).steps, recorded(slow, 20.0, 7).steps
    steps = [*first, *second]
    fitted = fit(steps, slowness=[1.0] * len(first) + [2.0] * len(second))
    assert fitted.num_steps == len(steps), (
        "the second run's clock begins at 0 again: its steps count all the same"
    )
    found = fitted.cost
    work = {"rows": 4, "tokens": 4, "sampled": 4, "decode_kv": 500.0}
    assert found.device_ns(**work) == pytest.approx(true.device_ns(**work), rel=0.02)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="1 speeds for 2 steps"):
        fit(steps[:2], slowness=[1.0])


def test_a_launch_that_holds_the_host_up_is_no_device_time() -> None:
    """The step before it seems longer, for its result is fetched late; a fit tells the two apart, and a simulation has them again."""
    large = size_class(129) + 1  # with a chunk, up to 160 tokens
    launch = [[]] * large + [[6e6]]
    true = CostModel(step=2e6, token=2e4, launch_of_size=launch)
    trace = recorded(true, 30.0, 4)
    found = fit(trace.steps).cost
    work = {"rows": 3, "tokens": 3, "sampled": 3, "decode_kv": 500.0}
    ratios = found.noise_of_size[size_class(3)]
    made = [found.device_ns(**work) * ratio for ratio in ratios]  # type: ignore[arg-type]
    assert sum(made) / len(made) == pytest.approx(true.device_ns(**work), rel=0.02)  # type: ignore[arg-type]
    assert max(found.launch_of_size[large]) == 6e6
    assert max(found.launch_of_size[size_class(3)]) == 0.0
    late = [step for step in trace.steps if step.rows and step.end - step.start > 3e6 and len(step.rows) <= 4]
    assert late, "no step of the recording was held up: the test says nothing"


def test_a_fit_needs_steps_and_a_cost_file_needs_sense(tmp_path: Path) -> None:
    """Errors name the file and what is wrong."""
    with pytest.raises(ValueError, match="holds 3 steps; at least 50"):
        fit(recorded(CostModel(), 30.0, 1).steps[:3])
    path = tmp_path / "cost.json"
    for text, says in (
        ("{", "not readable as JSON"),
        ('{"cost_model": {"speed": 1}}', "'speed' is no coefficient"),
        ('{"cost_model": {"step": -1}}', "step must be 0 or more"),
        ('{"cost_model": {"step": 1e999}}', "step must be a number"),
        ('{"cost_model": {"window": 1.5}}', "window must be a whole number"),
        ('{"cost_model": {"beyond_of_size": ["a"]}}', "beyond_of_size must be a list of numbers"),
        ('{"cost_model": {"noise": 5}}', "noise must be a list of numbers"),
        ('{"cost_model": {"noise_of_size": [1]}}', "noise_of_size must be a list of lists"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"{path}.*{says}"):
            cost_from_file(path)
    path.write_text(json.dumps({"cost_model": cost_dict(CostModel(step=5.0, beyond_of_size=[-1.0]))}))
    assert cost_from_file(path).step == 5.0
    assert cost_from_file(path).beyond_of_size == [-1.0]
