"""The GPU runner's host side without a GPU: staging, padding to buckets, upload and read-back, with the CPU standing in.

Streams, events and pinned memory are stand-ins that do nothing, "capture" is left out and "replay" runs the body for the
whole bucket: so padding that is not harmless, or a change that is staged wrongly, changes tokens here too.
"""

from __future__ import annotations

import ctypes
import dataclasses
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from stoker.config import EngineConfig
from stoker.engine import cuda_graphs, cuda_runner, weights
from stoker.engine import engine as engine_module
from stoker.engine.build import Attention
from stoker.engine.cuda_runner import CudaRunner
from stoker.engine.cuda_seats import CudaSeats
from stoker.engine.cuda_transfers import CudaTransfers
from stoker.engine.engine import Engine
from stoker.engine.forward import Forward
from stoker.engine.kv_cache import KVPool, kv_groups
from stoker.layers.parameters import ParameterStore
from stoker.model_config import ModelConfig
from stoker.models import registry
from stoker.sampling_params import SamplingParams
from support import checkpoints
from support.crowds import entering_a_block_together

CPU = torch.device("cpu")
BLOCKS, SEQS, TOKENS, LENGTH = 30, 6, 40, 300
WINDOWS = [0, 100]


class StandIn:
    """A stream with nothing behind it."""

    cuda_stream = 0

    def __init__(self, *_: Any, **__: Any) -> None: ...


class Launcher:
    """`_cuda.StepLauncher` where "device" memory is the host's: copies at once, and runs bodies where graphs would be replayed."""

    def __init__(self, device: int, stream: int, index: int) -> None:
        self._device = device
        self._hosts: list[int] = []
        self.bodies: dict[tuple[int, int], Any] = {}
        self.used: set[tuple[int, int]] = set()
        self.whole = 0

    def drop_graphs(self, kind: int) -> None: ...
    def add_entry(self, host: int) -> None:
        self._hosts.append(host)

    def begin(self, entry: int) -> None: ...
    def end(self, entry: int) -> None: ...
    def wait(self, entry: int) -> float:
        return 0.0

    def is_done(self, entry: int) -> bool:
        return True

    def upload(self, entry: int, body: int, *ranges: int) -> None:
        # What is not sent must not be read.
        ctypes.memset(self._device + body, 0xEE, 64)
        for begin, size in ((0, body), ranges[:2], ranges[2:]):
            ctypes.memmove(self._device + begin, self._hosts[entry] + begin, size)

    def replay(self, kind: int, bucket: int) -> None:
        self.used.add((kind, bucket))
        self.bodies[kind, bucket](bucket)

    def launch(self, entry: int, kind: int, tokens: int, outs: int, *upload: int) -> None:
        self.whole += 1
        self.upload(entry, *upload)
        with torch.inference_mode():
            if kind == cuda_graphs.DECODE and outs == tokens:
                self.replay(cuda_graphs.WHOLE, tokens)
                return
            self.replay(kind, tokens)
            if outs:
                self.replay(cuda_graphs.HEAD, outs)


class NativeLauncher(Launcher):
    """One whose steps the loop starts and waits for by plain C functions (csrc/bind/step_calls.h)."""

    def calls(self) -> Any:
        long, pointer = ctypes.c_int64, ctypes.c_void_p
        launch_type = ctypes.CFUNCTYPE(pointer, pointer, ctypes.c_size_t, *[ctypes.c_int32] * 3, *[long] * 5)
        wait_type = ctypes.CFUNCTYPE(pointer, pointer, ctypes.c_size_t, ctypes.POINTER(ctypes.c_float))

        def launch(_: Any, *step: int) -> None:
            self.launch(*step)

        def wait(_: Any, entry: int, milliseconds: Any) -> None:
            milliseconds[0] = 1.5

        class Calls(ctypes.Structure):
            _fields_: ClassVar = [("launcher", pointer), ("launch", launch_type), ("wait", wait_type)]

        self.kept = Calls(None, launch_type(launch), wait_type(wait)), b"stoker.step_calls"
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [pointer, ctypes.c_char_p, pointer]
        return new(ctypes.addressof(self.kept[0]), self.kept[1], None)


def begin_step(front: Any, changes: Any, seats: Any, tables: Any, records: Any) -> None:
    num_changes, num_seats, _, _, are_inline = front[:20].view(torch.int32).tolist()
    if are_inline:
        changes = front[64:].view(torch.int32).view(-1, 4)
    # In the opposite order: the device's order is anyone's.
    for group, seat, index, block in reversed(changes[:num_changes].tolist()):
        tables[group, seat, index] = block
    for record in seats[:num_seats]:
        records[int(record[0])] = record


def end_step(front: Any, sampled: Any, seats: Any, last_token: Any) -> None:
    last_token[seats.long()] = sampled.clamp_min(0)
    ctypes.memmove(int(front[8:16].view(torch.int64)), sampled.data_ptr(), 4 * len(sampled))


class Replayed(cuda_graphs.GraphSet):
    """Keeps its body where it would capture it."""

    def capture(self, launcher: Any, *_: Any, again: bool = False) -> float:
        launcher.bodies.update({(self.kind, size): self.body for size in self.buckets})
        return 0.0


class Space:
    """The CPU's attention needs no work list; the scheduler writes one all the same."""

    plans_chunks = True
    geometry: ClassVar = {
        "num_decode_heads": 2,
        "num_kv_heads": 2,
        "num_decode_workers": 8,
        "prefill_tile_tokens": 16,
        "num_prefill_workers": 4,
        "num_processors": 4,
    }

    def tensors(self, work: Any, indptr: Any, *, early: bool = False) -> None:
        assert work.shape[1] == 8
        assert indptr.shape == (12,)


@pytest.fixture
def cuda_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = torch.zeros

    def unpinned(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        return zeros(*args, **kwargs)

    native = types.ModuleType("stoker._cuda")
    native.__spec__ = ModuleSpec("stoker._cuda", None)
    native.StepLauncher, native.begin_step, native.end_step = Launcher, begin_step, end_step  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "stoker._cuda", native)
    monkeypatch.setattr(torch.cuda, "Stream", StandIn)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda _: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
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


def make_runner(
    folder: Path, eager: bool, seqs: int = SEQS, tokens: int = TOKENS, blocks: int = BLOCKS
) -> CudaRunner:
    model_config = ModelConfig.from_folder(folder)
    store = ParameterStore(torch.float32, CPU)
    model = registry.build(model_config, store, LENGTH)
    weights.load(store, folder)
    pool = KVPool(kv_groups(model_config, 16, torch.float32)[0], model_config, blocks, torch.float32, CPU)
    seats = CudaSeats(seqs + 1, 1, -(-LENGTH // 16), model_config.vocab_size, CPU)
    forward = Forward(model, model_config, pool.layers, seats, tokens, seqs, torch.float32, CPU)
    space: Any = Space()
    return CudaRunner(
        forward, seats, CudaTransfers([pool], []), space, WINDOWS, [1, 2, 4, seqs], True, enforce_eager=eager
    )


def build_with(monkeypatch: pytest.MonkeyPatch, runner: CudaRunner) -> None:
    """Engines from now on run their steps by `runner`."""
    build = engine_module.build

    def with_runner(config: EngineConfig) -> Any:
        attention = Attention(Space.geometry, WINDOWS)
        return dataclasses.replace(build(config), runner=runner, worker_thread=False, attention=attention)

    monkeypatch.setattr(engine_module, "build", with_runner)


@pytest.mark.usefixtures("cuda_on_cpu")
@pytest.mark.parametrize("way", ["graphs", "native", "eager"])
def test_tokens_equal_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Chunks, decodes, retractions and the prefix cache through buckets larger than the steps; simple steps by way of Python,
    or without it, between others that Python launches.
    """
    eager = way == "eager"
    if way == "native":
        monkeypatch.setattr(sys.modules["stoker._cuda"], "StepLauncher", NativeLauncher)
    model = checkpoints.make_model("mistral")
    checkpoints.save(model, tmp_path)
    prompts = checkpoints.prompts(16, 200, seed=2)
    reference = checkpoints.generate(model, prompts, 24)
    runner = make_runner(tmp_path, eager)
    build_with(monkeypatch, runner)
    config = EngineConfig(
        str(tmp_path),
        device="cpu",
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
        times = {step["device_ns"] for step in engine.loop.trace(1000)}
    assert (1_500_000 in times) == (way == "native")
    agreement = checkpoints.compare(reference, answers)
    assert agreement.wrong == 0, agreement
    launcher = runner._launcher
    used = {
        kind: {bucket for k, bucket in launcher.used if k == kind}
        for kind in (cuda_graphs.DECODE, cuda_graphs.MIXED, cuda_graphs.HEAD, cuda_graphs.WHOLE)
    }
    if eager:
        assert not launcher.used
        return
    assert used[cuda_graphs.MIXED] == {16, 32}
    assert used[cuda_graphs.DECODE]
    assert used[cuda_graphs.HEAD]
    assert used[cuda_graphs.WHOLE]
    assert launcher.whole > 0, "plain steps go out in one call"


@pytest.mark.usefixtures("cuda_on_cpu")
@pytest.mark.parametrize("launcher", [Launcher, NativeLauncher])
def test_more_table_changes_than_the_front_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: type[Launcher]
) -> None:
    """260 rows enter a block in the same decode step: its table changes (252 fit the front) take a copy of their own. The tokens
    are the plain CPU engine's.
    """
    monkeypatch.setattr(sys.modules["stoker._cuda"], "StepLauncher", launcher)
    checkpoints.save(checkpoints.make_model("mistral"), tmp_path)
    rows, tokens, blocks = 260, 4096, 600
    prompts = entering_a_block_together(rows)
    apart: list[int] = []
    upload = launcher.upload

    def noted(self: Launcher, entry: int, body: int, *ranges: int) -> None:
        apart.append(ranges[1])
        upload(self, entry, body, *ranges)

    monkeypatch.setattr(launcher, "upload", noted)
    answers: list[dict[str, list[int]]] = []
    for staged in (False, True):
        if staged:
            build_with(monkeypatch, make_runner(tmp_path, False, rows, tokens, blocks))
        config = EngineConfig(
            str(tmp_path),
            device="cpu",
            max_num_seqs=rows,
            max_num_batched_tokens=tokens,
            max_model_len=LENGTH,
            num_kv_blocks=blocks,
        )
        answers.append({})
        with Engine(config) as engine:
            for i, prompt in enumerate(prompts):
                engine.add_request(
                    str(i), prompt, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
                )
            while engine.has_unfinished():
                for output in engine.step():
                    assert output.finish_reason in (None, "length"), output.message
                    answers[-1].setdefault(output.rid, []).extend(output.new_token_ids)
    assert answers[0] == answers[1]
    assert [size for size in apart if size] == [16 * rows]


def test_buckets_hold_every_step_up_to_the_largest() -> None:
    for limit in (1, 3, 7, 64, 100, 256, 512, 1000):
        buckets = cuda_graphs.default_buckets(limit)
        assert buckets == sorted(set(buckets))
        assert buckets[-1] == min(limit, 2048)
        assert buckets[0] == 1
