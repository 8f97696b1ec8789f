"""LLM and AsyncLLM with the real engine and the embedded model: it answers, it answers the same however it is run, and a wrong block
of KV shows as a wrong answer."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from stoker import LLM, AsyncLLM, SamplingParams, demo_model
from stoker.demo_model import RecallPrompt

GREEDY = SamplingParams(temperature=0, max_tokens=16)
SEED = 20261122


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("stoker-demo", progress=False) as llm:
        yield llm


@pytest.fixture(scope="module")
def recalls() -> list[RecallPrompt]:
    return demo_model.recall_prompts(32, SEED)


def idle(llm: LLM | AsyncLLM) -> bool:
    """Nothing waits, runs or holds a block. With overlap a step may still be under way when the last end was handed out."""
    if isinstance(llm, LLM):
        llm.engine.step()
    stats = llm.engine.stats()
    return (
        stats.num_waiting == stats.num_running == 0
        and stats.num_free_blocks + stats.num_cached_blocks == stats.num_blocks
    )


def test_it_remembers_what_it_was_told(llm: LLM, recalls: list[RecallPrompt]) -> None:
    """Facts at random depths of prompts up to 1,000 tokens, many prompts at once."""
    outputs = llm.generate([recall.prompt for recall in recalls], GREEDY)
    right = sum(r.is_right(o.outputs[0].text) for r, o in zip(recalls, outputs, strict=True))
    assert right >= 0.9 * len(recalls), f"{right} of {len(recalls)}"
    assert max(len(output.prompt_token_ids) for output in outputs) > 900
    assert idle(llm)


def test_one_wrong_block_in_each_table_is_a_wrong_answer(
    recalls: list[RecallPrompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recall task means something: with the block that holds most of the fact swapped for another of the same
    prompt, under half of the answers are right; without the swap the very same run answers."""
    from stoker.engine.seats import CpuSeats

    tokenizer = demo_model.load_tokenizer()
    tasks = [recall for recall in recalls if recall.depth > 0.1][:16]
    wrong_index: list[int | None] = [None]
    apply = CpuSeats.apply

    def apply_and_swap(self: Any, header: Any, buffer: Any) -> None:
        apply(self, header, buffer)
        if wrong_index[0] is not None:
            # The block before it: same prompt, same kind of text, but not the fact.
            tables = self.block_tables[0].numpy()
            tables[:, wrong_index[0]] = tables[:, wrong_index[0] - 1]

    monkeypatch.setattr(CpuSeats, "apply", apply_and_swap)
    right = {False: 0, True: 0}
    with LLM("stoker-demo", max_num_seqs=1, enable_prefix_caching=False, progress=False) as llm:
        for recall in tasks:
            blocks = np.array(demo_model.fact_tokens(recall, tokenizer)) // llm.engine.config.block_size
            fullest = int(np.bincount(blocks).argmax())
            for swapped in (False, True):
                wrong_index[0] = fullest if swapped else None
                (output,) = llm.generate(recall.prompt, GREEDY)
                right[swapped] += recall.is_right(output.outputs[0].text)
    assert right[False] >= 0.9 * len(tasks), right
    assert right[True] < 0.5 * len(tasks), right


WAYS: dict[str, dict[str, Any]] = {
    "no overlap": {"overlap": False},
    "static": {"batching": "static", "max_num_seqs": 4},
    "prefill first": {"batching": "prefill_first", "max_num_seqs": 6},
    "no prefix cache, small chunks": {
        "enable_prefix_caching": False,
        "max_num_batched_tokens": 48,
        "max_num_seqs": 8,
    },
    "short of KV": {"num_kv_blocks": 64, "admission": "greedy"},
}


@pytest.fixture(scope="module")
def mixture() -> tuple[list[str], list[SamplingParams]]:
    """Recall tasks twice (the second finds the first's prefix), greedy and seeded stories, a stop string, two answers."""
    recalls = [recall.prompt for recall in demo_model.recall_prompts(6, SEED + 1, max_tokens=400)]
    stories = demo_model.story_prompts(6, SEED + 2)
    params = [GREEDY] * 12 + [SamplingParams(temperature=0, max_tokens=48)] * 3
    params += [
        SamplingParams(temperature=0.8, seed=3, max_tokens=48),
        SamplingParams(temperature=0.8, seed=4, max_tokens=48, n=2),
    ]
    params += [SamplingParams(temperature=0, max_tokens=64, stop=(".",), min_tokens=8)]
    return [*recalls, *recalls, *stories], params


def texts_of(mixture: tuple[list[str], list[SamplingParams]], **options: Any) -> list[Any]:
    """Text, tokens and end of every answer."""
    with LLM("stoker-demo", **{"dtype": "float32", "max_num_seqs": 16, "progress": False, **options}) as llm:
        outputs = llm.generate(*mixture)
        assert idle(llm)
        assert (llm.engine.stats().num_preemptions > 0) == ("num_kv_blocks" in options)
    return [
        (a.text, a.token_ids, a.finish_reason, a.stop_reason) for output in outputs for a in output.outputs
    ]


@pytest.fixture(scope="module")
def expected(mixture: tuple[list[str], list[SamplingParams]]) -> list[Any]:
    return texts_of(mixture)


@pytest.mark.parametrize("way", list(WAYS))
def test_texts_do_not_depend_on_how_they_were_computed(
    way: str, mixture: tuple[list[str], list[SamplingParams]], expected: list[Any]
) -> None:
    """In float32: the same texts, tokens and ends with and without overlap, caching, preemption, in every batching mode."""
    assert texts_of(mixture, **WAYS[way]) == expected


def test_the_ends_on_the_real_engine(llm: LLM) -> None:
    """A stop string ends the request in the engine, n answers are its own, ids in give ids out, a chat is answered."""
    prompt = demo_model.story_prompts(1, SEED)[0]
    (whole,) = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=60))
    text = whole.outputs[0].text
    stop = text[20:24]
    (cut,) = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=60, stop=[stop]))
    answer = cut.outputs[0]
    assert answer.text == text[: text.index(stop)]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)
    assert answer.token_ids == whole.outputs[0].token_ids[: len(answer.token_ids)]
    assert cut.metrics.finished_time > cut.metrics.arrival_time > 0
    (several,) = llm.generate(whole.prompt_token_ids, SamplingParams(n=3, seed=1, max_tokens=8))
    assert len({tuple(a.token_ids) for a in several.outputs}) > 1
    assert several.num_cached_tokens == (len(whole.prompt_token_ids) - 1) // 16 * 16
    (chat,) = llm.chat(
        [{"role": "user", "content": "Tell me a story about a fox."}],
        SamplingParams(temperature=0, max_tokens=20),
    )
    assert chat.outputs[0].text.strip()
    (scored,) = llm.generate(
        prompt, SamplingParams(temperature=0, max_tokens=4, logprobs=2, prompt_logprobs=0)
    )
    answer = scored.outputs[0]
    assert answer.logprobs is not None
    for token_id, candidates in zip(answer.token_ids, answer.logprobs, strict=True):
        assert candidates[token_id].rank == 1
        assert candidates[token_id].logprob == max(candidate.logprob for candidate in candidates.values())
    assert scored.prompt_logprobs is not None
    assert scored.prompt_logprobs[0] is None
    assert len(scored.prompt_logprobs) == len(scored.prompt_token_ids)
    for token_id, entry in zip(scored.prompt_token_ids[1:], scored.prompt_logprobs[1:], strict=True):
        assert entry is not None
        assert entry[token_id].logprob <= 0
    (shared,) = llm.generate(prompt, SamplingParams(n=3, seed=1, max_tokens=4, prompt_logprobs=0))
    assert shared.prompt_logprobs == scored.prompt_logprobs
    assert len({tuple(a.token_ids) for a in shared.outputs}) > 1
    assert idle(llm)


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([0] * 5000, {}, "5000 tokens.*2047"),
        ([2816], {}, "2816.*0 to 2815"),
        ([10**30], {}, "token id"),
        ("x", {"n": 1000}, "n=1000"),
        ("x", {"stop_token_ids": [5000]}, "5000"),
        ("x", {"logit_bias": {5000: 1.0}}, "5000"),
    ],
)
def test_the_real_engine_refuses_before_anything_starts(
    llm: LLM, prompt: Any, params: dict[str, Any], message: str
) -> None:
    """What was given and what is allowed; the good prompts of the call leave nothing behind."""
    with pytest.raises(ValueError, match=rf"prompts\[1\].*{message}"):
        llm.generate(["good", prompt], [GREEDY, SamplingParams(**params)])
    assert idle(llm)


def test_a_request_that_could_never_fit_is_refused_at_the_door() -> None:
    """A KV pool of 8 blocks holds requests of 128 tokens: the numbers are in the message, and smaller requests go on."""
    with LLM("stoker-demo", num_kv_blocks=9, max_num_seqs=2, progress=False) as llm:
        with pytest.raises(ValueError, match=r"prompts\[0\].*200 tokens.*127"):
            llm.generate([[5] * 200], SamplingParams(max_tokens=8))
        assert (
            llm.generate([[5] * 40], SamplingParams(max_tokens=8, ignore_eos=True))[0]
            .outputs[0]
            .finish_reason
            == "length"
        )


@pytest.mark.parametrize("model", ["/no/such/folder", "/tmp"])
def test_a_path_that_is_no_checkpoint(model: str) -> None:
    """A ValueError that names it."""
    with pytest.raises(ValueError, match=model):
        LLM(model)


def test_ctrl_c_on_the_real_engine(llm: LLM) -> None:
    """It ends between two steps; nothing is left; the engine goes on."""
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    endless = SamplingParams(max_tokens=None, ignore_eos=True)
    with pytest.raises(KeyboardInterrupt):
        llm.generate([[5, 6, 7]] * 4, endless)
    timer.join()
    assert idle(llm)
    assert llm.generate("Once upon a time", GREEDY)[0].finished


def test_async_answers_equal_those_of_llm(llm: LLM, recalls: list[RecallPrompt]) -> None:
    """16 consumers at once, one of them cancelled: the others get what `generate` gives (float32), and nothing is left."""
    prompts = [recall.prompt for recall in recalls[:8]] + demo_model.story_prompts(8, SEED)
    params = SamplingParams(temperature=0, max_tokens=24)

    async def consume(async_llm: AsyncLLM, prompt: str, params: SamplingParams) -> str:
        text = ""
        async for output in async_llm.generate(prompt, params):
            text = output.outputs[0].text
        return text

    async def run() -> list[str]:
        async with AsyncLLM("stoker-demo", dtype="float32", progress=False) as async_llm:
            doomed = asyncio.create_task(
                consume(async_llm, "Endless", SamplingParams(max_tokens=None, ignore_eos=True))
            )
            texts = await asyncio.gather(*(consume(async_llm, prompt, params) for prompt in prompts))
            doomed.cancel()
            await asyncio.wait([doomed])
            assert doomed.cancelled()
            for _ in range(1000):
                if idle(async_llm):
                    break
                await asyncio.sleep(0.01)
            assert idle(async_llm)
            return texts

    threads = threading.active_count()
    texts = asyncio.run(run())
    assert threading.active_count() == threads
    with LLM("stoker-demo", dtype="float32", progress=False) as offline:
        assert texts == [output.outputs[0].text for output in offline.generate(prompts, params)]
