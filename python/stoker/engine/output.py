"""What the engine hands up to `LLM` and `AsyncLLM`: tokens and ends, in token ids, a record for each req
that has news.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class TokenLogprobs:
    """Logprobs of one output token: candidates with the sampled one first, then the best in falling order."""

    token_ids: list[int]
    logprobs: list[float]
    rank: int
    """Of the sampled token, from 1."""


@dataclass(slots=True)
class EngineOutput:
    """News of one answer of one request.

    `finish_reason` is None while it runs, else `stop`, `length`, `abort` or `error`. For `stop`,
    `stop_reason` is the stop token's id where it was one of `stop_token_ids`, None where it was an
    end-of-sequence token. For `error`, `message` says why. Times are seconds on `time.monotonic()`'s clock;
    0.0: has not happened.
    """

    rid: str
    index: int = 0
    """Which of the request's n answers."""
    new_token_ids: list[int] = field(default_factory=list)
    new_logprobs: list[TokenLogprobs] | None = None
    """One for each new token, where the request asked for logprobs."""
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    """Once, with the first news, where the request asked; entry 0 is None."""
    pooled: list[float] | None = None
    """The whole answer of an embedding request: its last token's hidden row, after the final norm."""
    finish_reason: str | None = None
    stop_reason: int | None = None
    message: str = ""
    num_cached_tokens: int = 0
    """Prompt tokens that came from the prefix cache at the first admission."""
    num_preemptions: int = 0
    arrival_time: float = 0.0
    first_scheduled_time: float = 0.0
    first_token_time: float = 0.0
    finished_time: float = 0.0


@dataclass(slots=True)
class StepNews:
    """All news since the last look, for who passes them on: most of it is bare tokens, which stay flat lists.

    `tokens[i]` is the next one of the answer with ticket `tickets[i]`; `outputs` have everything else, the end of an
    answer with the tokens that came with it."""

    tickets: list[int]
    tokens: list[int]
    outputs: list[EngineOutput]


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A look at the engine, for progress bars and live views."""

    num_waiting: int
    num_running: int
    num_prefilling: int
    num_blocks: int
    """Blocks of the KV pool, without the null block."""
    num_free_blocks: int
    num_cached_blocks: int
    """Blocks that nobody holds and the prefix cache remembers."""
    num_steps: int
    num_preemptions: int
    """Requests that had to step aside, by recompute or by swap."""
    num_swaps: int
    """Of these, by swap."""
    num_swapped: int
    """Requests whose KV lies in host memory."""
    num_used_blocks: int
    num_draining_blocks: int
    """Blocks that nobody holds but that a step or a copy in flight still touches."""
    num_host_blocks: int
    """Blocks of the host pool that swapped requests' KV goes to."""
    num_free_host_blocks: int
    prompt_tokens: int
    """Prompt tokens computed so far (cached ones not counted)."""
    output_tokens: int
    preemptions: dict[tuple[str, str], int] = field(default_factory=dict)
    """num_preemptions by kind (retract, swap) and reason: blocks (KV ran out), priority (for a request that outranks them),
    failure (of a step that they stood on)."""
