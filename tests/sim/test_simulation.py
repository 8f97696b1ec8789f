"""The simulator drives the engine's own loop: it loses no request, repeats to the byte, and its time is what the cost model says."""

from __future__ import annotations

import json

import numpy as np
import pytest

from stoker._core.sim import CostModel
from stoker.sim import Requests, Setting, Slo, simulate, synthetic
from stoker.sim.replay import replay
from stoker.sim.run import finish, prepare
from stoker.viz.trace import Trace

ENGINE = {"num_blocks": 257, "max_num_seqs": 16, "max_num_batched_tokens": 256, "max_model_len": 1024}
COST = CostModel(step=1e6, token=1e4, row=2e4, decode_kv=50.0, score=1.0, host_before=2e5, host_after=5e4)


def some(seed: int = 0, **options: object) -> Requests:
    given = {
        "num_reqs": 200,
        "rate": 20.0,
        "prompt_len": "loguniform:8:300",
        "output_len": "uniform:1:60",
        **options,
    }
    return synthetic(seed=seed, **given)  # type: ignore[arg-type]


def test_every_request_gets_its_whole_answer_once() -> None:
    """A token lost or told twice between scheduler, executor and measures fails here, with preemptions under way."""
    requests = some(rate=None)
    run = simulate(Setting(COST, {**ENGINE, "num_blocks": 80, "admission": "greedy"}), requests)
    assert run.totals["preemptions"] > 0
    assert (run.reqs["num_tokens"] == requests.answer_lens).all()
    assert run.totals["output_tokens"] == requests.answer_lens.sum()
    assert (run.reqs["attempts"] == 1).all()
    assert run.totals["gap_count"] == (requests.answer_lens - 1).sum()


@pytest.mark.parametrize("overlap", [False, True])
def test_equal_seeds_give_equal_bytes(overlap: bool) -> None:
    """Another seed gives others; noise included."""
    noisy = CostModel(step=1e6, token=1e4, noise=[0.8, 1.0, 1.3])

    def text(seed: int) -> str:
        run = simulate(Setting(noisy, ENGINE, overlap=overlap, seed=seed), some(seed))
        return json.dumps(run.report(Slo(ttft=0.1))) + repr(run.reqs) + repr(run.course)

    assert text(3) == text(3)
    assert text(3) != text(4)


def test_one_request_takes_what_the_model_says() -> None:
    """Without overlap, host and device times add up; each step's work is counted from its own batch."""
    requests = synthetic(num_reqs=1, prompt_len="100", output_len="4")
    run = simulate(Setting(COST, ENGINE, overlap=False), requests)
    chunk = COST.device_ns(
        rows=1, chunk_rows=1, tokens=100, chunk_tokens=100, sampled=1, chunk_kv=100, scores=5050
    )
    assert run.ttft[0] * 1e9 == pytest.approx(2e5 + chunk, abs=2)
    decodes = [COST.device_ns(rows=1, tokens=1, sampled=1, decode_kv=100 + i) for i in (1, 2, 3)]
    assert (run.e2e[0] - run.ttft[0]) * 1e9 == pytest.approx(sum(decodes) + 3 * 2.5e5, abs=5)


def test_overlap_hides_the_host() -> None:
    """With a step in flight while the next is scheduled, decodes take the device's time alone."""
    requests = synthetic(num_reqs=1, prompt_len="16", output_len="50")
    slow, quick = (simulate(Setting(COST, ENGINE, overlap=overlap), requests) for overlap in (False, True))
    assert slow.e2e[0] - quick.e2e[0] == pytest.approx(49 * 2.5e5 / 1e9, rel=0.03)


def test_a_closed_loop_never_holds_more_than_its_users() -> None:
    """The next request of a user comes when the last answer is there."""
    run = simulate(Setting(COST, ENGINE), some(rate=None, users=5))
    order = np.sort(run.reqs["arrival"])
    ends = np.sort(run.reqs["last_token"])
    assert max(np.searchsorted(order, t, "right") - np.searchsorted(ends, t, "right") for t in order) == 5


def test_answers_shorter_than_max_tokens_end_by_a_token() -> None:
    """The scheduler is told max_tokens only, and sees the end one step late, as it would of a model."""
    requests = some().declaring(400)
    run = simulate(Setting(COST, ENGINE), requests)
    assert (run.reqs["num_tokens"] == requests.answer_lens).all()


def test_shared_prefixes_are_found() -> None:
    """Equal hash ids are equal tokens, other ids are not."""
    with_prefix = some(prefix_len=64, prefix_groups=2)
    run = simulate(Setting(COST, ENGINE), with_prefix)
    assert run.reqs["cached_tokens"].max() == 64
    assert run.report()["hit_rate"] > 0.2
    assert simulate(Setting(COST, ENGINE), some()).report()["hit_rate"] == 0


@pytest.mark.parametrize("overlap", [False, True])
def test_replayed_step_times_give_the_same_batches(overlap: bool) -> None:
    """Of a noisy run with queueing: row by row."""
    noisy = CostModel(step=1e6, token=1e4, noise=[0.5, 1.0, 3.0], host_before=1e5, host_after=3e4)
    simulation = prepare(Setting(noisy, ENGINE, overlap=overlap, seed=1), some(rate=60.0), record=True)
    finish(simulation)
    config = {**ENGINE, "overlap_depth": int(overlap)}
    trace = Trace.from_recording(simulation.take_recording(), {"config": config})
    both = replay(trace)
    assert len(both.recorded) > 100
    assert both.first_difference is None
    # Another token budget is another run; it takes more steps, so the recorded times are eked out.
    steps = len(trace.steps)
    trace.meta["config"]["max_num_batched_tokens"] = 64
    trace.steps.extend(trace.steps[-1:] * steps)
    other = replay(trace).first_difference
    assert other is not None
    assert other < steps // 2


def test_what_the_engine_would_refuse_is_told_before_the_run() -> None:
    """With the request and the numbers."""
    requests = some(prompt_len="3000", num_reqs=3)
    with pytest.raises(ValueError, match=r"request 0: a prompt of 3000 tokens leaves no room"):
        simulate(Setting(COST, ENGINE), requests)
    with pytest.raises(ValueError, match=r"need 126 KV blocks of 16 tokens; there are 99"):
        simulate(
            Setting(COST, {**ENGINE, "num_blocks": 100, "max_model_len": 4096}),
            some(prompt_len="2000", output_len="17"),
        )


def test_good_requests_are_those_that_keep_every_limit() -> None:
    """Goodput counts them over the run's time."""
    run = simulate(Setting(COST, ENGINE), some(rate=80.0))
    slo = Slo(ttft=float(np.median(run.ttft)), itl=float(np.median(run.itl)))
    good = [t <= slo.ttft and i <= slo.itl for t, i in zip(run.ttft, run.itl, strict=True)]  # type: ignore[operator]
    report = run.report(slo)["slo"]
    assert report["share"] == pytest.approx(np.mean(good))
    assert report["goodput_reqs_per_s"] == pytest.approx(np.sum(good) / run.seconds)
