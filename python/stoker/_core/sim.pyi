"""Executors that only pretend, and the simulator."""

from collections.abc import Sequence
from typing import Any, final

from numpy.typing import ArrayLike, NDArray

from .loop import Executor
from .sched import SchedulerConfig

class FakeGroup:
    """A KV group of the pretend device. `num_blocks` counts the null block; `window` 0 is full attention."""

    def __init__(
        self, *, block_size: int, num_blocks: int, num_host_blocks: int = 0, window: int = 0
    ) -> None: ...
    @property
    def block_size(self) -> int: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def num_host_blocks(self) -> int: ...
    @property
    def window(self) -> int: ...

@final
class ScriptedExecutor(Executor):
    """Samples hashes of what it reads back from a pretend KV memory, and names every promise that a batch breaks.

    Steps execute when they are collected, up to `overlap_depth` launches late; `eager_percent` of them at launch.
    `failing_steps` are batch ids that fail, `fatal_step` loses the device (0: never).
    """

    def __init__(
        self,
        *,
        groups: Sequence[FakeGroup],
        overlap_depth: int = 0,
        vocab_size: int = 100,
        eos: int = -1,
        eos_per_mille: int = 0,
        row_failures_per_million: int = 0,
        eager_percent: int = 0,
        max_transfer_delay: int = 0,
        failing_steps: Sequence[int] = ...,
        fatal_step: int = 0,
        read_all_rows: bool = True,
    ) -> None: ...
    def poison(self, group: int, block: int, host: bool = False) -> None:
        """Says that nobody may read the block any more before it is written again."""
    @property
    def violations(self) -> list[tuple[str, str, int]]:
        """The first ones: name of the check, details, batch id."""
    @property
    def num_violations(self) -> int: ...
    @property
    def num_steps(self) -> int: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def device_time_ns(self) -> int:
        """What the steps would have taken by the cost model."""

class CostModel:
    """What a step takes, in nanoseconds; see csrc/sim/cost_model.h. Fields are keyword arguments."""

    def __init__(self, **fields: Any) -> None: ...
    step: float
    from_idle: float
    row: float
    chunk_row: float
    sampled: float
    weights: float
    token: float
    chunk_token: float
    decode_kv: float
    chunk_kv: float
    score: float
    decodes_step: float
    decodes_row: float
    decodes_kv: float
    device_copy: float
    host_copy: float
    host_before: float
    host_after: float
    window: int
    windowed_share: float
    beyond_of_size: list[float]
    noise: list[float]
    noise_of_size: list[list[float]]
    launch_of_size: list[list[float]]
    def device_ns(
        self,
        *,
        rows: int,
        chunk_rows: int = 0,
        tokens: int,
        chunk_tokens: int = 0,
        sampled: int,
        decode_kv: float = 0.0,
        chunk_kv: float = 0.0,
        scores: float = 0.0,
    ) -> float:
        """Of one step, without noise and without the host's part."""

class FleetConfig:
    """Replicas and what happens to them; see csrc/sim/simulation.h. Times in nanoseconds. Fields are keyword arguments."""

    def __init__(self, **fields: Any) -> None: ...
    num_replicas: int
    routing: str
    slow_share: float
    slow_factor: float
    mean_time_between_failures: int
    repair_time: int
    min_replicas: int
    max_replicas: int
    target_load: float
    scale_interval: int
    startup_time: int
    scale_down_delay: int

class Workload:
    """What comes, one entry a req; see csrc/sim/workload.h. Times in nanoseconds."""

    def __init__(
        self,
        *,
        times: ArrayLike,
        prompt_lens: ArrayLike,
        answer_lens: ArrayLike,
        max_tokens: ArrayLike,
        hash_indptr: ArrayLike = ...,
        hash_ids: ArrayLike = ...,
        hash_block: int = 512,
        sessions: ArrayLike = ...,
        users: int = 0,
        vocab_size: int = 131072,
    ) -> None: ...
    def __len__(self) -> int: ...
    def prompt(self, number: int) -> NDArray[Any]:
        """Token ids of a req's prompt, int32."""

class Simulation:
    """The engine loop in virtual time. `replayed` [steps, 3]: received, collected (ns) and in_flight of recorded steps."""

    def __init__(
        self,
        *,
        scheduler: SchedulerConfig,
        cost: CostModel,
        workload: Workload,
        fleet: FleetConfig = ...,
        overlap_depth: int = 1,
        seed: int = 0,
        record: bool = False,
        replayed: ArrayLike = ...,
    ) -> None: ...
    def impossible(self, limit: int = 1) -> list[tuple[int, str]]:
        """Reqs that the engine would refuse, and why."""
    def run(self, turns: int) -> bool:
        """Goes on for so many turns at most. True: all reqs have ended."""
    @property
    def num_ended(self) -> int: ...
    def reqs(self) -> dict[str, NDArray[Any]]:
        """One entry a req: arrival, scheduled, first_token, last_token, longest_gap (ns), num_tokens, cached_tokens, ..."""
    def totals(self) -> dict[str, int]: ...
    def gaps(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """The histogram of gaps between two tokens of a req: middles of its buckets (ns), counts."""
    def course(self) -> dict[str, Any]:
        """bin_ns, and for each line its mean (or sum of tokens) in each bin."""
    def replicas(self) -> list[dict[str, int]]: ...
    def take_recording(self) -> dict[str, Any]:
        """As EngineLoop.take_recording(), of replica 0; for a simulation made with record=True."""
