"""The engine as LLM and AsyncLLM drive it: ends, refusals, aborts, several answers, logprobs, failures, its own thread."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stoker.config import EngineConfig
from stoker.engine.engine import Engine
from stoker.engine.output import EngineOutput
from stoker.sampling_params import SamplingParams
from support import checkpoints

PROMPT = [7, 300, 12, 7, 999, 41, 3, 3, 8, 250, 77, 6, 1, 500, 2, 90, 14, 15, 16, 17]
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def model() -> Any:
    return checkpoints.make_model("llama")


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.save(model, tmp_path_factory.mktemp("llama"))


def start(folder: Path, **options: Any) -> Engine:
    defaults: dict[str, Any] = {
        "device": "cpu",
        "max_num_seqs": 4,
        "max_num_batched_tokens": 32,
        "max_model_len": 128,
        "num_kv_blocks": 40,
    }
    return Engine(EngineConfig(str(folder), **(defaults | options)))


@pytest.fixture
def engine(folder: Path) -> Any:
    with start(folder) as made:
        yield made


def finish(engine: Engine) -> dict[tuple[str, int], EngineOutput]:
    """Steps until all is done; one EngineOutput an answer, with all its tokens."""
    whole: dict[tuple[str, int], EngineOutput] = {}
    while engine.has_unfinished():
        for news in engine.step():
            merge(whole, news)
    return whole


def merge(whole: dict[tuple[str, int], EngineOutput], news: EngineOutput) -> None:
    key = (news.rid, news.index)
    if key not in whole:
        whole[key] = news
        return
    old = whole[key]
    assert old.finish_reason is None
    news.new_token_ids = old.new_token_ids + news.new_token_ids
    news.new_logprobs = None if news.new_logprobs is None else [*(old.new_logprobs or []), *news.new_logprobs]
    news.prompt_logprobs = old.prompt_logprobs or news.prompt_logprobs
    news.pooled = old.pooled or news.pooled
    whole[key] = news


def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    return checkpoints.generate(model, [prompt], count).tokens[0]


def test_an_answer_ends_by_length_with_its_account(engine: Engine, model: Any) -> None:
    began = time.monotonic()
    engine.add_request("a", PROMPT, GREEDY)
    end = finish(engine)["a", 0]
    assert end.new_token_ids == greedy(model, PROMPT, 8)
    assert (end.finish_reason, end.stop_reason, end.message) == ("length", None, "")
    times = [end.arrival_time, end.first_scheduled_time, end.first_token_time, end.finished_time]
    assert times == sorted(times)
    assert began <= times[0] <= times[-1] <= time.monotonic()


def test_stop_tokens_and_end_of_sequence(folder: Path, model: Any, tmp_path: Path) -> None:
    """A stop token is named as the reason, an end-of-sequence token is not; ignore_eos and min_tokens go on."""
    tokens = greedy(model, PROMPT, 8)
    assert len(set(tokens)) > 3
    third = tokens[2]
    first = tokens.index(third)
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": {third}}}')
    with start(tmp_path) as engine:
        assert engine.eos_token_ids == (third,)
        engine.add_request("eos", PROMPT, SamplingParams(temperature=0, max_tokens=8))
        engine.add_request("ignored", PROMPT, GREEDY)
        engine.add_request(
            "stop",
            PROMPT,
            SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, stop_token_ids=[third]),
        )
        engine.add_request("later", PROMPT, SamplingParams(temperature=0, max_tokens=8, min_tokens=6))
        ends = finish(engine)
    eos, stop = ends["eos", 0], ends["stop", 0]
    assert (eos.new_token_ids, eos.finish_reason, eos.stop_reason) == (tokens[: first + 1], "stop", None)
    assert (stop.new_token_ids, stop.finish_reason, stop.stop_reason) == (tokens[: first + 1], "stop", third)
    assert ends["ignored", 0].new_token_ids == tokens
    later = ends["later", 0].new_token_ids
    assert len(later) >= 6
    assert third not in later[:5]


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], GREEDY, "prompt is empty"),
        ([1] * 128, GREEDY, r"128 tokens; at most 127 leave room"),
        ([5, 1031], GREEDY, r"token id 1031 is outside the vocabulary; allowed are 0 to 1030"),
        ([5, -1], GREEDY, r"token id -1 is outside"),
        ([2**40], GREEDY, r"token id 1099511627776 is outside"),
        (["a"], GREEDY, r"must be a list of token ids"),
        ([[1, 2]], GREEDY, "one-dimensional|list of token ids|empty"),
        ([1], SamplingParams(n=5), r"n=5: at most max_num_seqs=4"),
    ],
)
def test_a_bad_request_is_refused_and_harms_nobody(
    engine: Engine, model: Any, prompt: Any, params: SamplingParams, message: str
) -> None:
    engine.add_request("good", PROMPT, GREEDY)
    with pytest.raises(ValueError, match=message):
        engine.add_request("bad", prompt, params)
    ends = finish(engine)
    assert list(ends) == [("good", 0)]
    assert ends["good", 0].new_token_ids == greedy(model, PROMPT, 8)


def test_a_rid_in_use_is_refused(engine: Engine) -> None:
    engine.add_request("a", PROMPT, GREEDY)
    with pytest.raises(ValueError, match="rid 'a' is still running"):
        engine.add_request("a", PROMPT, GREEDY)
    finish(engine)
    engine.add_request("a", np.array(PROMPT, np.int32), GREEDY)
    assert len(finish(engine)) == 1


def test_an_answer_goes_to_the_models_length(engine: Engine) -> None:
    """max_tokens=None: as far as the model's length allows."""
    engine.add_request("a", PROMPT, SamplingParams(temperature=0, max_tokens=None, ignore_eos=True))
    end = finish(engine)["a", 0]
    assert (len(end.new_token_ids), end.finish_reason) == (128 - len(PROMPT), "length")


def test_abort_ends_one_and_spares_the_others(engine: Engine, model: Any) -> None:
    """Running and waiting requests alike; unknown ones are passed over."""
    long = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
    for i in range(6):
        engine.add_request(f"long {i}", PROMPT, long)
    engine.add_request("short", PROMPT, GREEDY)
    whole: dict[tuple[str, int], EngineOutput] = {}
    for _ in range(5):
        for news in engine.step():
            merge(whole, news)
    engine.abort("nobody")
    for i in range(6):
        engine.abort(f"long {i}")
    while engine.has_unfinished():
        for news in engine.step():
            merge(whole, news)
    assert whole["short", 0].new_token_ids == greedy(model, PROMPT, 8)
    assert {whole[f"long {i}", 0].finish_reason for i in range(6)} == {"abort"}
    assert engine.stats().num_running == 0


def test_several_answers(engine: Engine) -> None:
    """n = 3: three answers of their own seeds, the same again, and one of them can be ended alone."""
    params = SamplingParams(n=3, temperature=1.0, max_tokens=12, seed=5, ignore_eos=True)
    answers = []
    for rid in ("first", "again"):
        engine.add_request(rid, PROMPT, params)
        ends = finish(engine)
        answers.append([ends[rid, i].new_token_ids for i in range(3)])
    assert answers[0] == answers[1]
    assert len({tuple(a) for a in answers[0]}) == 3
    engine.add_request("cut", PROMPT, params)
    engine.step()
    engine.abort("cut", 1)
    ends = finish(engine)
    assert [ends["cut", i].finish_reason for i in range(3)] == ["length", "abort", "length"]


def test_a_seed_does_not_care_for_company(engine: Engine) -> None:
    """The same seeded request alone and among others."""
    params = SamplingParams(temperature=0.8, top_k=50, top_p=0.95, max_tokens=16, seed=3, ignore_eos=True)
    engine.add_request("alone", PROMPT, params)
    alone = finish(engine)["alone", 0].new_token_ids
    for i in range(5):
        engine.add_request(f"other {i}", PROMPT[i:], SamplingParams(max_tokens=20, seed=i))
    engine.add_request("among", PROMPT, params)
    assert finish(engine)["among", 0].new_token_ids == alone


def test_logprobs_and_prompt_logprobs(engine: Engine, model: Any) -> None:
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=2, prompt_logprobs=0, ignore_eos=True)
    engine.add_request("a", PROMPT, params)
    end = finish(engine)["a", 0]
    tokens = PROMPT + end.new_token_ids
    with torch.inference_mode():
        logprobs = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    assert end.prompt_logprobs is not None
    assert end.new_logprobs is not None
    assert end.prompt_logprobs[0] is None
    for i in range(1, len(PROMPT)):
        entry = end.prompt_logprobs[i]
        assert entry is not None
        assert entry.token_ids == [PROMPT[i]]
        assert entry.logprobs[0] == pytest.approx(float(logprobs[i - 1, PROMPT[i]]), abs=1e-3)
    for i, entry in enumerate(end.new_logprobs):
        best = logprobs[len(PROMPT) - 1 + i].topk(2)
        assert entry.token_ids == [end.new_token_ids[i], *best.indices.tolist()]
        assert entry.logprobs[1:] == pytest.approx(best.values.tolist(), abs=1e-3)
        assert entry.rank == 1


def test_prompt_logprobs_bring_the_best_candidates(engine: Engine, model: Any) -> None:
    """With k, each prompt token has its own logprob and rank and the k best, over chunks and beside other reqs."""
    engine.add_request(
        "other", PROMPT[3:], SamplingParams(max_tokens=30, seed=1, logprobs=1, ignore_eos=True)
    )
    long = PROMPT * 3
    engine.add_request("a", long, SamplingParams(temperature=0, max_tokens=2, logprobs=1, prompt_logprobs=3))
    engine.add_request("b", PROMPT, SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=1))
    ends = finish(engine)
    with torch.inference_mode():
        logprobs = model(torch.tensor([long])).logits[0].log_softmax(-1)
    for name, prompt, k in (("a", long, 3), ("b", PROMPT, 1)):
        entries = ends[name, 0].prompt_logprobs
        assert entries is not None
        assert len(entries) == len(prompt)
        for i in range(1, len(prompt)):
            entry, row = entries[i], logprobs[i - 1]
            assert entry is not None
            best = row.topk(k)
            assert entry.token_ids == [prompt[i], *best.indices.tolist()]
            assert entry.logprobs == pytest.approx([float(row[prompt[i]]), *best.values.tolist()], abs=1e-3)
            assert entry.rank == int((row > row[prompt[i]]).sum()) + 1


@pytest.mark.parametrize("preemption", ["retract", "swap"])
def test_prompt_logprobs_outlive_a_preemption(folder: Path, preemption: str) -> None:
    """A prompt that is displaced half-way, and again while it answers, is told the same logprobs as one left alone."""
    long, params = PROMPT * 4, SamplingParams(temperature=0, max_tokens=6, prompt_logprobs=1, ignore_eos=True)
    options = {"max_num_batched_tokens": 16, "schedule_policy": "priority", "preemption": preemption}
    with start(folder, num_kv_blocks=9, swap_space=0.01, **options) as engine:
        engine.add_request("alone", long, params)
        alone = finish(engine)["alone", 0]
        engine.add_request("a", long, params, priority=1)
        whole: dict[tuple[str, int], EngineOutput] = {}
        for step in range(40):
            if step in (3, 14):
                urgent = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
                engine.add_request(f"urgent {step}", PROMPT[::-1] * 4, urgent)
            for news in engine.step():
                merge(whole, news)
        stats = engine.loop.stats()
        assert not engine.has_unfinished()
    assert stats.num_preemptions >= 2
    assert (stats.num_swaps > 0) == (preemption == "swap")
    assert whole["a", 0].new_token_ids == alone.new_token_ids
    for entry, expected in zip(whole["a", 0].prompt_logprobs, alone.prompt_logprobs, strict=True):
        assert (entry is None) == (expected is None)
        if entry is not None:
            assert entry.token_ids == expected.token_ids
            assert entry.logprobs == pytest.approx(expected.logprobs, abs=1e-4)


def test_a_pooled_request_gives_its_last_hidden_row(engine: Engine, model: Any) -> None:
    """Nothing is sampled; the vector does not depend on chunks or on who else runs."""
    engine.add_request("other", PROMPT, SamplingParams(max_tokens=20, seed=1, ignore_eos=True))
    engine.add_request("e", PROMPT * 3, SamplingParams(max_tokens=1), pool=True)
    end = finish(engine)["e", 0]
    with torch.inference_mode():
        hidden = model.model(torch.tensor([PROMPT * 3])).last_hidden_state[0, -1]
    assert end.finish_reason == "stop", end.message
    assert end.new_token_ids == []
    assert end.pooled == pytest.approx(hidden.tolist(), abs=1e-3)


def test_a_failing_step_fails_its_requests_only(
    engine: Engine, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception in the model ends what was in the step with its message; the engine goes on."""

    def broken(*_: object) -> None:
        raise RuntimeError("the model broke")

    engine.add_request("unlucky", PROMPT, GREEDY)
    with monkeypatch.context() as patch:
        patch.setattr("stoker.models.llama.Llama.forward", broken)
        end = finish(engine)["unlucky", 0]
    assert end.finish_reason == "error"
    assert "the model broke" in end.message
    engine.add_request("lucky", PROMPT, GREEDY)
    assert finish(engine)["lucky", 0].new_token_ids == greedy(model, PROMPT, 8)


def test_a_prompt_seen_before_comes_from_the_cache(engine: Engine) -> None:
    for rid, cached in (("first", 0), ("second", 16)):
        engine.add_request(rid, PROMPT, GREEDY)
        assert finish(engine)[rid, 0].num_cached_tokens == cached
    engine.add_request("salted", PROMPT, GREEDY, cache_salt="other")
    assert finish(engine)["salted", 0].num_cached_tokens == 0


def test_scheduling_options_arrive(folder: Path) -> None:
    """What the engine is told of scheduling is what its scheduler goes by."""
    options = {
        "schedule_policy": "priority",
        "urgent_prefill_token_threshold": 9,
        "schedule_conservativeness": 0.5,
        "scheduler_options": {"bypass_limit": 3},
    }
    with start(folder, **options) as engine:
        config = engine.loop.config
        assert config.schedule_policy == "priority"
        assert config.urgent_prefill_token_threshold == 9
        assert config.schedule_conservativeness == 0.5
        assert config.bypass_limit == 3
    with pytest.raises(ValueError, match="urgent_prefill_token_threshold"):
        EngineConfig(str(folder), urgent_prefill_token_threshold=-1)


def test_on_a_thread_of_its_own(folder: Path, model: Any) -> None:
    """Requests from several threads, one consumer; closing ends what still runs."""
    whole: dict[tuple[str, int], EngineOutput] = {}
    with start(folder) as engine:
        engine.start()
        threads = [
            threading.Thread(target=engine.add_request, args=(f"{i}", PROMPT[i:], GREEDY)) for i in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        while engine.has_unfinished():
            for news in engine.wait(1.0):
                merge(whole, news)
        engine.add_request("endless", PROMPT, SamplingParams(temperature=0, max_tokens=100, ignore_eos=True))
    assert all(whole[f"{i}", 0].new_token_ids == greedy(model, PROMPT[i:], 8) for i in range(6))
    with pytest.raises(ValueError, match="engine is closed"):
        engine.add_request("late", PROMPT, GREEDY)
    engine.close()


def test_the_next_step_is_scheduled_while_one_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Overlap is real: step 3 waits, inside its forward, until step 4 stands in the ring."""
    from stoker.models.llama import Llama

    forward = Llama.forward
    seen: list[bool] = []
    with start(folder) as engine:
        buffers = [buffer for buffer, _ in engine.runner._ring]

        def waiting(self: Llama, tokens: torch.Tensor, ctx: Any) -> torch.Tensor:
            deadline = time.monotonic() + 30
            newest = 0
            while len(seen) == 2 and newest < 4 and time.monotonic() < deadline:
                newest = max(buffer.header().batch_id for buffer in buffers)
                time.sleep(0.001)
            seen.append(newest == 4)
            return forward(self, tokens, ctx)

        monkeypatch.setattr(Llama, "forward", waiting)
        engine.add_request("a", PROMPT[:4], GREEDY)
        finish(engine)
    assert seen[2]


def test_an_engine_that_nobody_holds_is_gone(folder: Path) -> None:
    """Its KV and weights are most of a machine's memory; the loop's native half holds Python objects that no collector sees."""
    engine = Engine(EngineConfig(str(folder), device="cpu", max_num_seqs=2, max_model_len=64))
    engine.add_request("a", [1, 2, 3], SamplingParams(max_tokens=2))
    while engine.has_unfinished():
        engine.step()
    gone = weakref.ref(engine)
    engine.close()
    del engine
    gc.collect()
    assert gone() is None
