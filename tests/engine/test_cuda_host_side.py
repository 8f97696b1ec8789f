"""The GPU runner's host side without a GPU: staging, padding to buckets, upload and read-back, with the CPU standing in.

Streams, events and pinned memory are stand-ins that do nothing, "capture" is left out and "replay" runs the body for the
whole bucket: so padding that is not harmless, or a change that is staged wrongly, changes tokens here too.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from stoker.config import EngineConfig, ModelConfig
from stoker.engine import cuda_graphs, cuda_runner, cuda_step, weights
from stoker.engine.cuda_runner import CudaRunner
from stoker.engine.cuda_seats import CudaSeats
from stoker.engine.engine import Engine
from stoker.engine.forward import Forward
from stoker.engine.kv_cache import KVPool, kv_groups
from stoker.engine.transfers import Transfers
from stoker.layers.parameters import ParameterStore
from stoker.models import registry
from stoker.sampling_params import SamplingParams
from support import checkpoints

CPU = torch.device("cpu")
BLOCKS, SEQS, TOKENS, LENGTH = 30, 6, 40, 300


class StandIn:
    """A stream or an event with nothing behind it."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def record(self, *_: Any) -> None: ...
    def synchronize(self) -> None: ...
    def elapsed_time(self, _: Any) -> float:
        return 0.0


class NoPlans:
    """The CPU's attention needs no work list."""

    windows = (0, 100)
    work_entries, indptr_entries = 4, 4
    has_prefill = True

    def on_device(self, _: Any) -> None: ...
    def plan(self, *_: Any) -> None: ...
    def plan_nothing(self, *_: Any) -> None: ...


class Replayed(cuda_graphs.GraphSet):
    """Runs the body where a graph would be replayed."""

    used: set[int]

    def capture(self, *_: Any) -> float:
        self.used = set()
        return 0.0

    def replay(self, bucket: int) -> None:
        self.used.add(bucket)
        self._body(bucket)


@pytest.fixture
def cuda_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = torch.zeros

    def unpinned(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        return zeros(*args, **kwargs)

    monkeypatch.setattr(torch.cuda, "Stream", StandIn)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda _: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(cuda_step, "_timing_event", StandIn)
    monkeypatch.setattr(torch, "zeros", unpinned)
    monkeypatch.setattr(cuda_runner, "GraphSet", Replayed)
    # A mixed step's graph is captured with one decode row and finds the others in the list, which the CPU has not.
    monkeypatch.setattr(Forward, "layers", _with_true_decode_rows(Forward.layers))


def _with_true_decode_rows(layers: Any) -> Any:
    def wrapped(
        self: Forward, tokens: int, rows: int, decode_rows: int, views: Any, plans: Any = None
    ) -> Any:
        return layers(self, tokens, rows, 0, views, None)

    return wrapped


def make_runner(folder: Path, eager: bool) -> CudaRunner:
    model_config = ModelConfig.from_folder(folder)
    store = ParameterStore(torch.float32, CPU)
    model = registry.build(model_config, store, LENGTH)
    weights.load(store, folder)
    pool = KVPool(kv_groups(model_config, 16, torch.float32)[0], model_config, BLOCKS, torch.float32, CPU)
    seats = CudaSeats(SEQS + 1, 1, -(-LENGTH // 16), model_config.vocab_size, CPU)
    forward = Forward(model, model_config, pool.layers, seats, TOKENS, SEQS, torch.float32, CPU)
    plans: Any = NoPlans()
    return CudaRunner(forward, seats, Transfers([pool], []), plans, [1, 2, 4, 6], True, enforce_eager=eager)


@pytest.mark.usefixtures("cuda_on_cpu")
@pytest.mark.parametrize("eager", [False, True])
def test_tokens_equal_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eager: bool) -> None:
    """Chunks, decodes, retractions and the prefix cache through buckets larger than the steps."""
    model = checkpoints.make_model("mistral")
    checkpoints.save(model, tmp_path)
    prompts = checkpoints.prompts(16, 200, seed=2)
    reference = checkpoints.generate(model, prompts, 24)
    runner = make_runner(tmp_path, eager)

    from stoker.engine import engine as engine_module

    build = engine_module.build

    def with_runner(config: EngineConfig) -> Any:
        import dataclasses

        return dataclasses.replace(build(config), runner=runner, worker_thread=False)

    monkeypatch.setattr(engine_module, "build", with_runner)
    config = EngineConfig(
        str(tmp_path),
        max_num_seqs=SEQS,
        max_num_batched_tokens=TOKENS,
        max_model_len=LENGTH,
        num_kv_blocks=BLOCKS,
        admission="greedy",
    )
    answers: list[list[int]] = [[] for _ in prompts]
    with Engine(config) as engine:
        for i, prompt in enumerate(prompts):
            # Some want more than tokens: these steps are read at launch.
            params = SamplingParams(
                temperature=0, max_tokens=24, ignore_eos=True, logprobs=1 if i % 5 == 0 else None
            )
            engine.add_request(str(i), prompt, params)
        while engine.has_unfinished():
            for output in engine.step():
                answers[int(output.rid)] += output.new_token_ids
                assert output.finish_reason in (None, "length"), output.message
        assert engine.stats().num_preemptions > 0
    agreement = checkpoints.compare(reference, answers)
    assert agreement.wrong == 0, agreement
    if not eager:
        mixed, decode, head = runner._mixed, runner._decode, runner._head
        assert isinstance(mixed, Replayed)
        assert isinstance(decode, Replayed)
        assert isinstance(head, Replayed)
        assert mixed.used == {16, 32}
        assert decode.used
        assert head.used


def test_buckets_hold_every_step_up_to_the_largest() -> None:
    for limit in (1, 3, 7, 64, 100, 256, 512, 1000):
        buckets = cuda_graphs.default_buckets(limit)
        assert buckets == sorted(set(buckets))
        assert buckets[-1] == min(limit, 512)
        assert buckets[0] == min(limit, 8)
