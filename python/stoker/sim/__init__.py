"""The simulator: the engine's own loop and scheduler on a virtual clock, with steps that take the time a cost model says.

from stoker.sim import CostModel, Setting, simulate, synthetic
run = simulate(Setting(CostModel(), {"num_blocks": 4097, "max_num_seqs": 64}), synthetic(num_reqs=1000, rate=8.0))
run.report()["ttft"]["p99"]
"""

from stoker._core.sim import CostModel
from stoker.sim.cost import Device, cost_from_file, kv_blocks, roofline
from stoker.sim.requests import Requests, load_trace, synthetic
from stoker.sim.run import Run, Setting, Slo, simulate

__all__ = [
    "CostModel",
    "Device",
    "Requests",
    "Run",
    "Setting",
    "Slo",
    "cost_from_file",
    "kv_blocks",
    "load_trace",
    "roofline",
    "simulate",
    "synthetic",
]
