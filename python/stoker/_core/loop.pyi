"""The engine loop, its outbox and trace, and the interface of executors written in Python."""

from collections.abc import Sequence
from typing import Any, Protocol, final, overload

import numpy as np
from numpy.typing import NDArray

from .sched import BatchLayout, Req, SchedulerConfig, StepResult, StepStager

class _PythonExecutor(Protocol):
    """What the loop expects of an executor written in Python (duck-typed; this class does not exist at run time).

    Every method is called by one thread only, with the GIL held: the thread that drives the loop, or with
    `worker_thread=True` a thread of the loop's that runs `launch` and `collect` of one step after the other.

    An exception from `launch` or `collect` fails that step: its reqs end with an error, the engine goes on. An
    exception with a true attribute `fatal` (or `result.status = 2`) ends all reqs and the engine. KeyboardInterrupt
    fails the step too, and comes out of `EngineLoop.turn()` afterwards.
    """

    overlap_depth: int
    """D: steps that may be in flight while the next one is scheduled. `launch` must return before its step is done
    for D > 0 to be worth anything (or give `worker_thread=True`). Read once."""

    def buffers(self, layout: BatchLayout, n: int, /) -> Sequence[Any]:
        """n (overlap_depth + 2, one more with a worker thread) writable, contiguous buffers of at least
        `layout.bytes` bytes that begin at a multiple of 64 (numpy arrays, numpy views of pinned tensors). Called
        once. The loop keeps them alive and clears them."""
    def launch(self, index: int, /) -> None:
        """Starts the step that lies in buffer `index`. The buffer stays as it is until the step was collected."""
    def launch_sample(self, batch_id: int, mask_row: NDArray[np.int32], masks: NDArray[np.int32], /) -> None:
        """Samples a step whose header has the flag 2 (its `launch` left that out), under the masks that were not
        known then: output row i takes row mask_row[i] of `masks` (-1: none), bit t % 32 of word t / 32 allows token t.
        Called when every step before was collected. Both are views, valid until this step was collected."""
    def collect(self, result: StepResult, /) -> None:
        """Waits for the oldest launched step and fills `result`, which is cleared and bears its batch_id already.
        Valid during the call only."""
    # May be missing, or give None; an executor that gives it has the three after it as well.
    def native_steps(self) -> tuple[StepStager, Any] | None:
        """The stager of the buffers and a capsule (csrc/bind/step_calls.h): the loop stages every step and launches and
        collects the simple ones itself, without the GIL."""
    def launch_parts(self, index: int, /, *staged: int) -> None:
        """`launch` for a step that is staged and not simple; `collect` brings it back."""
    @property
    def transfers_under_way(self) -> bool:
        """Asked after launch_parts and add_transfers: whether collected steps must ask add_transfers."""
    def add_transfers(self, result: StepResult, /) -> None:
        """Copies between tiers that ended since, in a step's result that is filled but for them."""

class _MaskSource(Protocol):
    """What the loop expects of a source of grammar masks (duck-typed). Called by the thread that drives, with the GIL."""

    def fill(
        self, rows: list[tuple[int, int, int, list[int]]], /
    ) -> tuple[NDArray[np.int32], list[tuple[int, str]]]:
        """`rows`: (key, grammar, number of outputs, those of them that were not told before) of each req that is about
        to sample. Returns their masks [rows, words], untouched until the next call, and (row, why) of those that
        cannot go on. An exception ends all of them with an error."""
    def forget(self, key: int, grammar: int, /) -> None:
        """An answer with a grammar has ended; called once for each that was added."""

class Executor:
    """A native executor; see stoker._core.sim."""

    @property
    def overlap_depth(self) -> int: ...

@final
class EngineLoop:
    """Receive, schedule, launch, collect. Driven by `turn()` on the caller's thread or by `run()` on its own, never
    both."""

    def __init__(
        self,
        config: SchedulerConfig,
        executor: Executor | _PythonExecutor,
        *,
        worker_thread: bool = False,
        trace_capacity: int = 1024,
        check_each_step: bool = False,
        masks: _MaskSource | None = None,
        event_log: str = "",
    ) -> None:
        """`config.overlap_depth` is taken from the executor. With `worker_thread` each step runs on a thread of the
        loop's, with D = max(executor.overlap_depth, 1): overlap for an executor whose `launch` blocks.
        `event_log`: a file that the scheduler's event log is written to, for replay()."""
    def add(self, req: Req, *, stream: bool = True) -> int:
        """Any thread. Checks the req (ValueError: it can never run), puts it into the inbox and returns its key at
        once; child i of n has key + i. With `stream=False` its tokens come all at once, with its end. From here on
        the Req belongs to the loop: read it only after its end. What can be told only later (the rid is in use, the
        queue is full) comes back as an end with an error."""
    @overload
    def abort(self, key: int) -> None: ...
    @overload
    def abort(self, rid: str) -> None:
        """Any thread. By key one answer, by rid all of them. Unknown or ended ones are ignored."""
    def grammar_ready(self, rid: str) -> None:
        """Any thread. What the req was waiting for (`Req(grammar_ready=False)`) is there."""
    def end_with_error(self, rid: str, why: str) -> None:
        """Any thread. As abort, but the answers end with an error."""
    def turn(self, timeout: float = 0.0) -> bool:
        """One turn without the GIL. False if there was nothing to do; then it first sleeps up to `timeout` seconds
        for something to come into the inbox."""
    def run(self) -> None:
        """Starts the loop's own thread. It is joined by stop(), when the loop is deleted, and at the interpreter's
        exit."""
    def stop(self) -> None:
        """Lets the steps in flight come back and joins the thread. Unfinished reqs stay; run() goes on with them."""
    @property
    def running(self) -> bool: ...
    def has_unfinished(self) -> bool:
        """Any thread. True while something was added whose end is not in the outbox yet."""
    def poll(self) -> Outputs:
        """What is new. One consumer."""
    def wait(self, timeout: float = -1.0) -> Outputs:
        """The same, but waits without the GIL up to `timeout` seconds (negative: no limit) for news, or for the
        loop's thread to end."""
    def look(self, rid: str = "", *, max_waiting: int = 256, timeout: float = 1.0) -> list[dict[str, Any]]:
        """How the reqs stand: those that hold a place, then at most `max_waiting` of the queue in its order; with a
        `rid` only that one (and its children). Answered between two steps of a loop that run() or another thread
        drives; TimeoutError if it is not. A dict holds rid, tenant, state, prefilling, wait_code, wait (a sentence),
        needed, free, evictable, place (in the queue, or -1), prompt_len, num_outputs, computed, length_limit,
        num_blocks, priority, and of the account arrival_time, first_scheduled_time, first_token_time (nanoseconds),
        prefill_steps, decode_steps, retractions, swaps, cached_tokens."""
    def stats(self) -> LoopStats: ...
    def trace(self, count: int = 1024) -> list[dict[str, Any]]:
        """The newest steps, oldest first: what each held, and nanoseconds by stage."""
    def start_recording(self, max_rows: int = 4194304) -> None:
        """Any thread. From the next step on keeps what each req does in each step, at most `max_rows` rows between two
        `take_recording()`; steps for which there is no room are counted, not kept."""
    def stop_recording(self) -> None: ...
    def take_recording(self) -> dict[str, Any]:
        """What was kept since the last call: `steps` as in trace(), and lists of tuples, nanoseconds throughout:
        `rows` (batch_id, key, seat, num_tokens, kv_len, decodes), `tokens` (batch_id, key, count), `changes` (batch_id,
        time, key, state, wait code, needed, free, evictable), `reqs` (key, rid, prompt_len, arrival_time), `ends`
        (batch_id, key, reason, num_outputs, retractions, swaps, cached_tokens, first_scheduled_time, first_token_time,
        finish_time); and `dropped_steps`."""
    @property
    def num_stalls(self) -> int:
        """Turns with reqs to run but nothing to launch and nothing in flight; the scheduler promises 0."""
    @property
    def config(self) -> SchedulerConfig:
        """As validated: every default filled in."""

class Outputs:
    """News as flat arrays that own their memory. Tokens of a key are in order and before its end. False if empty."""

    def __bool__(self) -> bool: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def num_ends(self) -> int: ...
    @property
    def num_scores(self) -> int: ...
    @property
    def num_pooled(self) -> int: ...
    # One entry for each new token.
    @property
    def token_keys(self) -> NDArray[np.int64]: ...
    @property
    def tokens(self) -> NDArray[np.int32]: ...
    @property
    def logprob_indptr(self) -> NDArray[np.int32]:
        """[num_tokens + 1], or empty if none of the tokens has logprobs: token i's candidates are entries
        [indptr[i], indptr[i + 1]) of logprob_ids and logprobs, the sampled token first, then the best, falling."""
    @property
    def logprob_ids(self) -> NDArray[np.int32]: ...
    @property
    def logprobs(self) -> NDArray[np.float32]: ...
    @property
    def logprob_ranks(self) -> NDArray[np.int32]:
        """[num_tokens], or empty: rank of the sampled token, from 1; 0: not computed."""
    # One entry for each prompt token that was scored.
    @property
    def score_keys(self) -> NDArray[np.int64]: ...
    @property
    def score_positions(self) -> NDArray[np.int32]: ...
    @property
    def scores(self) -> NDArray[np.float32]: ...
    @property
    def score_logprob_indptr(self) -> NDArray[np.int32]:
        """[num_scores + 1]: candidates of each score, as logprob_indptr's; the prompt's own token first."""
    @property
    def score_logprob_ids(self) -> NDArray[np.int32]: ...
    @property
    def score_logprobs(self) -> NDArray[np.float32]: ...
    @property
    def score_ranks(self) -> NDArray[np.int32]:
        """[num_scores]: rank of the prompt's own token, from 1; 0: not computed."""
    # One entry, and pooled_width floats of `pooled`, for each pooled req.
    @property
    def pooled_keys(self) -> NDArray[np.int64]: ...
    @property
    def pooled(self) -> NDArray[np.float32]: ...
    @property
    def pooled_width(self) -> int: ...
    # One entry for each end.
    @property
    def end_keys(self) -> NDArray[np.int64]: ...
    @property
    def finish_reasons(self) -> NDArray[np.int32]:
        """1 stop, 2 length, 3 abort, 4 error."""
    @property
    def stop_tokens(self) -> NDArray[np.int32]:
        """The token that ended it, where one did; else -1."""
    @property
    def end_num_tokens(self) -> NDArray[np.int32]:
        """Tokens of the whole answer."""
    @property
    def cached_tokens(self) -> NDArray[np.int32]: ...
    @property
    def num_preemptions(self) -> NDArray[np.int32]: ...
    # Nanoseconds of time.monotonic_ns()'s clock; below 0: has not happened.
    @property
    def arrival_times(self) -> NDArray[np.int64]: ...
    @property
    def first_scheduled_times(self) -> NDArray[np.int64]: ...
    @property
    def first_token_times(self) -> NDArray[np.int64]: ...
    @property
    def finished_times(self) -> NDArray[np.int64]: ...
    @property
    def messages(self) -> list[str]:
        """Why, where it ended with an error; else empty."""

class LoopStats:
    """A look at the loop."""

    @property
    def num_waiting(self) -> int: ...
    @property
    def num_running(self) -> int: ...
    @property
    def num_prefilling(self) -> int: ...
    @property
    def num_swapped(self) -> int: ...
    @property
    def num_swaps(self) -> int: ...
    @property
    def preemptions(self) -> dict[tuple[str, str], int]:
        """By kind (retract, swap) and reason: blocks (KV ran out), priority (for a req that outranks them), failure (of a
        step that they stand on)."""
    @property
    def num_host_blocks(self) -> int:
        """Of KV group 0, without the null block; 0: nothing can be swapped."""
    @property
    def num_free_host_blocks(self) -> int: ...
    @property
    def steps_in_flight(self) -> int: ...
    @property
    def num_unfinished(self) -> int: ...
    @property
    def num_steps(self) -> int: ...
    @property
    def num_preemptions(self) -> int: ...
    @property
    def prefill_tokens(self) -> int:
        """Computed so far, cached ones not counted."""
    @property
    def output_tokens(self) -> int: ...
    @property
    def num_blocks(self) -> int:
        """Of KV group 0, without the null block."""
    @property
    def num_free_blocks(self) -> int: ...
    @property
    def num_cached_blocks(self) -> int: ...
    @property
    def num_used_blocks(self) -> int: ...
    @property
    def num_draining_blocks(self) -> int: ...
    @property
    def failure(self) -> str:
        """Why the engine has stopped for good; empty: it has not."""
