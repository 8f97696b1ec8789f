"""Everything that one simulation is made from, as plain values: what the command line gives and a sweep varies."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from stoker._core.sched import SchedulerConfig
from stoker._core.sim import CostModel, FleetConfig
from stoker.sim.cost import Device, ModelSizes, cost_from_file, kv_blocks, roofline
from stoker.sim.requests import Requests, load_trace, synthetic
from stoker.sim.run import Setting, impossible

NS = 1_000_000_000
_FLEET_SECONDS = (
    "mean_time_between_failures",
    "repair_time",
    "scale_interval",
    "startup_time",
    "scale_down_delay",
)


@dataclass(frozen=True, slots=True)
class Scenario:
    """Names as on the command line. Times in seconds, lengths in tokens."""

    model: ModelSizes | None = None
    model_len: int = 0
    """The longest that the model allows; 0: unknown."""
    device: str = "h200"
    cost: str | None = None
    """File with a fitted cost model; None: a roofline of model and device."""
    element_bytes: int = 2
    kv_element_bytes: int = 2
    gpu_memory_utilization: float = 0.9

    trace: str | None = None
    speed: float = 1.0
    """A trace's rate is multiplied by this."""
    rate: float | None = None
    """Requests a second; a trace is sped up or slowed down to it."""
    users: int = 0
    think: float = 0.0
    burstiness: float = 1.0
    num_reqs: int | None = None
    prompt_len: str = "512"
    output_len: str = "128"
    prefix_len: int = 0
    prefix_groups: int = 1
    max_tokens: int = 0
    skip_impossible: bool = False
    seed: int = 0

    num_kv_blocks: int | None = None
    block_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_model_len: int | None = None
    overlap: bool = True
    scheduler: dict[str, Any] = field(default_factory=dict)
    """Further fields of SchedulerConfig."""
    fleet: dict[str, Any] = field(default_factory=dict)
    """Fields of FleetConfig, times in seconds."""

    def vary(self, name: str, value: Any) -> Scenario:
        """The same with one value changed; `name` is a field here, of SchedulerConfig, or of FleetConfig."""
        if name == "replicas":
            name = "num_replicas"
        if name in (f.name for f in fields(self)) and name not in ("scheduler", "fleet", "model"):
            return replace(self, **{name: value})
        if hasattr(SchedulerConfig, name):
            return replace(self, scheduler={**self.scheduler, name: value})
        if hasattr(FleetConfig, name):
            return replace(self, fleet={**self.fleet, name: value})
        raise ValueError(f"{name!r} cannot be varied; allowed are {', '.join(varied_names())}")

    def cost_model(self) -> CostModel:
        """From the file, or model and device."""
        if self.cost is not None:
            return cost_from_file(self.cost)
        if self.model is None:
            raise ValueError(
                "a model's config (--model) and a device are needed, or a fitted cost model (--cost)"
            )
        return roofline(
            self.model,
            Device.find(self.device),
            element_bytes=self.element_bytes,
            kv_element_bytes=self.kv_element_bytes,
            block_size=self.block_size,
        )

    def num_blocks(self) -> int:
        """As given, or what the device's memory holds."""
        if self.num_kv_blocks is not None:
            return self.num_kv_blocks
        if self.model is None:
            raise ValueError("num_kv_blocks is needed where no model is given")
        return kv_blocks(
            self.model,
            Device.find(self.device),
            element_bytes=self.element_bytes,
            kv_element_bytes=self.kv_element_bytes,
            block_size=self.block_size,
            utilization=self.gpu_memory_utilization,
        )

    def setting(self) -> Setting:
        """What to simulate. Raises ValueError for what cannot work."""
        blocks = self.num_blocks()
        room = (blocks - 1) * self.block_size
        longest = self.max_model_len or min(self.model_len or room, room)
        scheduler = {
            "num_blocks": blocks,
            "block_size": self.block_size,
            "max_num_seqs": self.max_num_seqs,
            "max_num_batched_tokens": max(self.max_num_batched_tokens, self.max_num_seqs),
            "max_model_len": longest,
            "seed": self.seed,
            **self.scheduler,
        }
        fleet = {k: round(v * NS) if k in _FLEET_SECONDS else v for k, v in self.fleet.items()}
        return Setting(self.cost_model(), scheduler, fleet, self.overlap, self.seed)

    def requests(self) -> Requests:
        """What comes."""
        if self.trace is None:
            made = synthetic(
                num_reqs=1000 if self.num_reqs is None else self.num_reqs,
                rate=self.rate,
                burstiness=self.burstiness,
                users=self.users,
                think=self.think,
                prompt_len=self.prompt_len,
                output_len=self.output_len,
                prefix_len=self.prefix_len,
                prefix_groups=self.prefix_groups,
                seed=self.seed,
            )
        else:
            made = _trace(self.trace, _changed(self.trace))
            if self.num_reqs is not None:
                made = made.first(self.num_reqs)
            speed = self.speed
            if self.rate is not None:
                speed = self.rate * float(made.times[-1]) / NS / max(len(made) - 1, 1)
            if speed != 1.0:
                made = made.faster(speed)
        if self.max_tokens:
            made = made.declaring(self.max_tokens)
        if self.skip_impossible and (refused := impossible(self.setting(), made)):
            if len(refused) == len(made):
                raise ValueError(f"none of the {len(made)} requests fits; see it without --skip-impossible")
            made = made.without(refused)
        return made

    def told(self) -> dict[str, Any]:
        """What differs from the defaults, for reports."""
        told = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in ("model", "scheduler", "fleet") and getattr(self, f.name) != f.default
        }
        return {**told, **self.scheduler, **self.fleet}


def varied_names() -> list[str]:
    """What a sweep can vary."""
    own = [f.name for f in fields(Scenario) if f.name not in ("model", "scheduler", "fleet", "model_len")]
    native = [n for c in (SchedulerConfig, FleetConfig) for n in vars(c) if not n.startswith("_")]
    return sorted({*own, *native, "replicas"} - {"num_blocks", "kv_groups", "attention", "eos_token_ids"})


@lru_cache(maxsize=4)
def _trace(path: str, changed: int) -> Requests:
    return load_trace(path)


def _changed(path: str) -> int:
    """When the file was written, so that another one of the name is read anew; 0: there is none."""
    try:
        return Path(path).stat().st_mtime_ns
    except OSError:
        return 0
