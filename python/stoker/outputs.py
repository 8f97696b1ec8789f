"""What a request gives back: `RequestOutput` with its `CompletionOutput`s, named as in vLLM."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Logprob:
    """One candidate for one token: natural logarithm of its probability before temperature and penalties."""

    logprob: float
    rank: int | None = None
    """1 is the likeliest token; None: not computed."""
    decoded_token: str | None = None
    """None where there is no tokenizer."""


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """A request's account. Times are seconds on `time.monotonic()`'s clock; 0.0: has not happened."""

    arrival_time: float = 0.0
    first_scheduled_time: float = 0.0
    first_token_time: float = 0.0
    finished_time: float = 0.0
    num_preemptions: int = 0
    """How often the request had to step aside for want of KV memory."""

    @property
    def queue_time(self) -> float | None:
        """Seconds from arrival to the first step that worked on the request."""
        return self._since_arrival(self.first_scheduled_time)

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from arrival to the first output token."""
        return self._since_arrival(self.first_token_time)

    @property
    def latency(self) -> float | None:
        """Seconds from arrival to the end."""
        return self._since_arrival(self.finished_time)

    def _since_arrival(self, time: float) -> float | None:
        return time - self.arrival_time if time else None


@dataclass(slots=True)
class CompletionOutput:
    """One answer to a prompt; with `n` > 1 there are several."""

    index: int
    text: str
    """Empty with `detokenize=False` or without a tokenizer."""
    token_ids: list[int]
    """All tokens of the answer, the one that ended it included."""
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    """For each token of `token_ids`: the token itself and the likeliest ones, by id."""
    finish_reason: str | None = None
    """None while it grows; then `stop`, `length`, `abort` or `error`."""
    stop_reason: int | str | None = None
    """The stop string or the id of the stop token that ended it; None for end of sequence and other ends."""
    error: str | None = None
    """Why, where `finish_reason` is `error`."""

    @property
    def finished(self) -> bool:
        """Whether the answer is at its end."""
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestOutput:
    """A prompt and its answers so far."""

    request_id: str
    prompt: str | None
    """None where token ids were given."""
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    """For each prompt token; the first has none."""
    num_cached_tokens: int = 0
    """Prompt tokens whose KV was found in the prefix cache."""
    metrics: RequestMetrics = field(default_factory=RequestMetrics)
