"""The thread pool: choices, several callers at once, and a forked child."""

from __future__ import annotations

import os
import threading

import pytest
import torch

from stoker import ops
from stoker._core import cpu
from support.op_cases import AttentionCase

CASE = AttentionCase(((900, 1), (300, 200)), q_heads=8, kv_heads=2, dtype=torch.bfloat16)


def attend() -> torch.Tensor:
    out = torch.zeros_like(CASE.tensors()["q"])
    ops.paged_attention(out, **CASE.tensors(), **CASE.options())
    return out


def test_torchs_team_is_found() -> None:
    """torch's wheels for Linux come with libgomp: its threads are used, not a second pool."""
    assert "OpenMP" in torch.__config__.parallel_info()
    assert cpu.thread_pool() == "torch"


def test_settings_are_checked() -> None:
    """Bad numbers and names say what is allowed."""
    with pytest.raises(ValueError, match="count is -1, allowed are 1 to 1024"):
        cpu.set_num_threads(-1)
    with pytest.raises(ValueError, match="'mine' is not one of auto, own, torch"):
        cpu.set_thread_pool("mine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'sse9' is not available here; this processor has portable"):
        cpu.set_isa("sse9")


@pytest.mark.parametrize("pool", ["torch", "own"])
def test_several_callers_at_once(pool: str) -> None:
    """Python threads that call ops at the same time all get their own right answer."""
    cpu.set_thread_pool(pool)  # type: ignore[arg-type]
    want = attend()
    wrong: list[str] = []

    def call() -> None:
        wrong.extend(threading.current_thread().name for _ in range(5) if not torch.equal(attend(), want))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("pool", ["torch", "own"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_child(pool: str) -> None:
    """A child forked after the parent has used its threads computes the same, and ends."""
    cpu.set_thread_pool(pool)  # type: ignore[arg-type]
    case, out = CASE.tensors(), torch.zeros_like(CASE.tensors()["q"])
    want = attend()
    child = os.fork()
    if child == 0:
        ops.paged_attention(out, **case, **CASE.options())
        # Not torch.equal: torch's own loops may hang in a forked child.
        same = out.view(torch.int16).numpy().tobytes() == want.view(torch.int16).numpy().tobytes()
        os._exit(0 if same else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
