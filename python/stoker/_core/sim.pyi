"""Executors that only pretend."""

from collections.abc import Sequence
from typing import final

from .loop import Executor

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
