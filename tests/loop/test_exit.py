"""A process that ends with a step in flight ends cleanly: no thread of the loop asks a dying interpreter for the GIL."""

from __future__ import annotations

import subprocess
import sys

import pytest

_SCRIPT = """
import sys, time
import numpy as np
from stoker import SamplingParams
from stoker._core.loop import EngineLoop
from stoker.scheduler import Req, SchedulerConfig

class Slow:
    overlap_depth = 0
    def buffers(self, layout, n):
        self.memory = [np.zeros(layout.bytes + 64, np.uint8) for _ in range(n)]
        return [m[-m.ctypes.data % 64:][:layout.bytes] for m in self.memory]
    def launch(self, index):
        time.sleep(0.2)  # still running when the interpreter goes down
    def collect(self, result):
        raise RuntimeError("nobody waits for this")

config = SchedulerConfig(num_blocks=64, max_num_seqs=4, max_num_batched_tokens=64)
loop = EngineLoop(config, Slow(), worker_thread=True)
loop.add(Req("a", origin_input_ids=[1, 2, 3], sampling_params=SamplingParams(max_tokens=4)))
loop.run() if sys.argv[1] == "run" else loop.turn()
print("leaving")
"""


@pytest.mark.parametrize("how", ["turn", "run"])
def test_leaving_with_a_step_in_flight_is_clean(how: str) -> None:
    """Once it was `terminate called without an active exception`."""
    done = subprocess.run([sys.executable, "-c", _SCRIPT, how], capture_output=True, text=True, timeout=60)
    assert done.stdout == "leaving\n"
    assert done.returncode == 0, done.stderr
