"""KV that moves on a GPU: swaps, forks of n > 1, and grammar masks that come late, to the bit where the arithmetic allows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stoker import StructuredOutputsParams
from stoker.config import EngineConfig
from stoker.engine import engine as engine_module
from stoker.engine.engine import Engine
from stoker.layers import linear
from stoker.sampling_params import SamplingParams
from support import checkpoints
from support.crowds import entering_a_block_together
from support.kv_shortage import short_of_kv

pytestmark = pytest.mark.gpu

AMPLE = 2800
Answers = dict[tuple[str, int], list[int]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.save(checkpoints.make_model("llama"), tmp_path_factory.mktemp("llama"))


def run(
    folder: Path,
    requests: list[tuple[list[int], SamplingParams]],
    at_once: int | None = None,
    **options: Any,
) -> tuple[Answers, int, int]:
    """Tokens by (rid, answer), and how many preemptions and swaps there were. at_once: decode rows of the largest step."""
    defaults: dict[str, Any] = {"device": "cuda", "max_num_seqs": 16, "max_model_len": 400}
    answers: Answers = {}
    with Engine(EngineConfig(str(folder), **(defaults | options))) as engine:
        for i, (prompt, params) in enumerate(requests):
            engine.add_request(str(i), prompt, params)
        while engine.has_unfinished():
            for output in engine.step():
                assert output.finish_reason in (None, "length", "stop"), output.message
                answers.setdefault((output.rid, output.index), []).extend(output.new_token_ids)
        stats, swaps = engine.stats(), engine.loop.stats().num_swaps
        largest = max(step["num_decode_rows"] for step in engine.loop.trace())
    assert at_once in (None, largest)
    assert stats.num_running == stats.num_waiting == stats.num_swapped == 0
    assert stats.num_free_blocks + stats.num_cached_blocks == stats.num_blocks
    return answers, stats.num_preemptions, swaps


def sampled(count: int, longest: int, **params: Any) -> list[tuple[list[int], SamplingParams]]:
    prompts = checkpoints.prompts(count, longest, seed=5)
    settings = {"temperature": 1.0, "max_tokens": 60, "ignore_eos": True, **params}
    return [(prompt, SamplingParams(seed=i, **settings)) for i, prompt in enumerate(prompts)]


# bfloat16 with the planned attention kernels and their graphs, exact: every product by our own op, whose rows are the same to
# the bit in any company; prompts whole in one step (a last token left alone would go through the decode kernel, which adds
# in another order); and a swap computes nothing again.
EXACT: dict[str, Any] = {
    "dtype": "bfloat16",
    "max_num_batched_tokens": 4096,
    "enable_prefix_caching": False,
}


@pytest.fixture
def own_products(monkeypatch: pytest.MonkeyPatch) -> None:
    # The gated kernel for more than 64 rows has bits of its own; two ops have those of any number of rows.
    monkeypatch.setattr(linear, "few_rows", lambda *_, gated=False: 64 if gated else 1 << 30)


TIGHT = short_of_kv(50, swap=True)


@pytest.mark.usefixtures("own_products")
@pytest.mark.filterwarnings("ignore:kv_cache_dtype")
@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8"])
@pytest.mark.parametrize("enforce_eager", [False, True])
def test_swapped_requests_keep_their_tokens(folder: Path, enforce_eager: bool, kv_cache_dtype: Any) -> None:
    """A block that came back wrong, too late or over another's changes a token."""
    options = EXACT | {"enforce_eager": enforce_eager, "kv_cache_dtype": kv_cache_dtype}
    requests = sampled(24, 150)
    ample, none, _ = run(folder, requests, num_kv_blocks=AMPLE, **options)
    tight, _, swaps = run(folder, requests, **options, **TIGHT)
    assert none == 0
    assert swaps >= 8
    assert tight == ample


@pytest.mark.usefixtures("own_products")
@pytest.mark.parametrize("enforce_eager", [False, True])
def test_a_step_with_more_changes_than_its_front_holds(folder: Path, enforce_eager: bool) -> None:
    """280 rows enter each new block in the same step: its 280 table changes no longer fit the front of the one copy (252) and
    travel in a copy of their own. One that is lost, or comes late, is a row that reads another's KV.
    """
    requests = [
        (prompt, SamplingParams(temperature=1.0, seed=i, max_tokens=40, ignore_eos=True))
        for i, prompt in enumerate(entering_a_block_together(280))
    ]
    options = EXACT | {"num_kv_blocks": AMPLE, "enforce_eager": enforce_eager}
    crowd, _, _ = run(folder, requests, at_once=280, max_num_seqs=280, **options)
    few, _, _ = run(folder, requests, max_num_seqs=40, **options)
    assert crowd == few


@pytest.mark.usefixtures("own_products")
@pytest.mark.parametrize("tight", [False, True])
def test_forks_are_what_one_answer_alone_is(folder: Path, tight: bool) -> None:
    """n = 3 shares a prompt's blocks and copies the partial one; each answer is what its seed gives in a request of its own."""
    options = EXACT | (TIGHT if tight else {"num_kv_blocks": AMPLE})
    forked, preemptions, _ = run(folder, sampled(12, 150, n=3), **options)
    again, _, _ = run(folder, sampled(12, 150, n=3), **EXACT, num_kv_blocks=AMPLE, overlap=False)
    assert forked == again
    assert (preemptions > 0) == tight
    assert len({tuple(forked[str(i), k]) for i in range(12) for k in range(3)}) == 36
    # The first answer of n = 3 has the seed of the request itself.
    alone, _, _ = run(folder, sampled(12, 150), **EXACT, num_kv_blocks=AMPLE)
    assert all(alone[str(i), 0] == forked[str(i), 0] for i in range(12))


def test_forks_equal_the_cpus(folder: Path) -> None:
    """Float32: the same draws as the CPU's engine, but for one whose place lies on a border."""
    requests = sampled(8, 120, n=4, top_k=50, top_p=0.95)
    gpu, _, _ = run(folder, requests, dtype="float32", num_kv_blocks=AMPLE)
    cpu, _, _ = run(folder, requests, dtype="float32", num_kv_blocks=AMPLE, device="cpu")
    assert gpu.keys() == cpu.keys()
    assert sum(gpu[key] == cpu[key] for key in gpu) >= len(gpu) - 2


class EverySeventh:
    """A mask source in the place of a grammar: after k tokens only ids allow that are k mod 7, and none of them twice."""

    def __init__(self, _: Any, vocab_size: int, __: Any) -> None:
        self.vocab_size = vocab_size
        self.seen: dict[int, list[int]] = {}
        self.rows = 0

    def open(self, _: SamplingParams) -> int:
        return 1

    def is_ready(self, _: int) -> bool:
        return True

    def close(self, _: int) -> None: ...
    def shutdown(self) -> None: ...
    def forget(self, key: int, _: int) -> None:
        self.seen.pop(key, None)

    def fill(self, rows: list[tuple[int, int, int, list[int]]]) -> tuple[Any, list[Any]]:
        bits = np.zeros((len(rows), -(-self.vocab_size // 32) * 32), np.uint8)
        for mask, (key, _, outputs, tokens) in zip(bits, rows, strict=True):
            self.rows += 1
            seen = self.seen.setdefault(key, [])
            seen += tokens
            assert len(seen) == outputs
            mask[outputs % 7 :: 7] = 1
            mask[seen] = 0
            mask[self.vocab_size :] = 0
        return np.packbits(bits, axis=1, bitorder="little").view(np.int32), []


@pytest.mark.parametrize("way", ["graphs", "eager", "no_overlap", "swapped"])
def test_late_masks(folder: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Masked answers among free ones, some with n > 1 or penalties: each token is one that its mask allowed, and the float32
    tokens are the CPU's.
    """
    monkeypatch.setattr(engine_module, "Grammars", EverySeventh)
    mask = StructuredOutputsParams(regex="a+")
    requests = []
    for i, prompt in enumerate(checkpoints.prompts(20, 150, seed=8)):
        params = SamplingParams(
            temperature=0.0 if i % 2 else 1.0,
            seed=i,
            max_tokens=40,
            ignore_eos=True,
            n=2 if i % 8 == 4 else 1,
            presence_penalty=0.5 if i % 5 == 0 else 0.0,
            logprobs=1 if i % 7 == 0 else None,
            structured_outputs=None if i % 3 == 0 else mask,
        )
        requests.append((prompt, params))
    options: dict[str, Any] = {
        "graphs": {},
        "eager": {"enforce_eager": True},
        "no_overlap": {"overlap": False},
        "swapped": TIGHT,
    }[way]
    gpu, _, swaps = run(folder, requests, dtype="float32", **({"num_kv_blocks": AMPLE} | options))
    cpu, _, _ = run(folder, requests, dtype="float32", num_kv_blocks=AMPLE, device="cpu")
    assert (swaps > 0) == (way == "swapped")
    for (rid, _), tokens in gpu.items():
        if int(rid) % 3:
            assert [token % 7 for token in tokens] == [k % 7 for k in range(40)]
            assert len(set(tokens)) == 40
    assert gpu.keys() == cpu.keys()
    assert sum(gpu[key] == cpu[key] for key in gpu) >= len(gpu) - 1
