"""What front end and engine process say to each other: msgpack with a schema (msgspec), never pickle. Positions are the schema."""

from __future__ import annotations

import secrets
from typing import Any

import msgspec

from stoker.sampling_params import SamplingParams

PROTOCOL = 4
"""Both ends say it in their first message; a mismatch ends the connection with both numbers."""


_WORKER_SHIFT = 40


def first_ticket(worker: int) -> int:
    """Where a worker's tickets begin. A ticket names one answer in a Step; the answers of a request have consecutive ones.

    Somewhere in the worker's range: who takes the place of a worker that died must not get the tokens of its requests.
    """
    return (worker << _WORKER_SHIFT) + secrets.randbits(_WORKER_SHIFT - 1)


def worker_of(ticket: int) -> int:
    """Whose ticket it is."""
    return ticket >> _WORKER_SHIFT


class Submit(msgspec.Struct, array_like=True, tag="submit"):
    """A new request. `token_ids` is little-endian int32; `ticket` that of its first answer."""

    worker: int
    rid: str
    ticket: int
    token_ids: bytes
    params: SamplingParams
    priority: int = 0
    cache_salt: str | None = None
    tenant: str | None = None
    pool: bool = False
    """An embedding: the answer is a vector, nothing is sampled."""
    stream: bool = True
    """False: its tokens come all at once, with its end."""


class Abort(msgspec.Struct, array_like=True, tag="abort"):
    """End a request of this worker (None: whoever's it is), or one of its answers (`index`), in whatever state it is."""

    worker: int | None
    rid: str
    index: int | None = None


class Hello(msgspec.Struct, array_like=True, tag="hello"):
    """A front-end worker is there and listens at `address`. The engine answers with Ready."""

    worker: int
    address: str
    protocol: int = PROTOCOL


class Goodbye(msgspec.Struct, array_like=True, tag="goodbye"):
    """A front-end worker is gone: its requests are aborted."""

    worker: int


class AskStats(msgspec.Struct, array_like=True, tag="stats"):
    """The engine answers with Stats."""

    worker: int
    ticket: int


class AskLooks(msgspec.Struct, array_like=True, tag="looks"):
    """The engine answers with Looks. `rid` empty: all that hold a place, and at most `max_waiting` of the queue."""

    worker: int
    ticket: int
    rid: str = ""
    max_waiting: int = 256


ToEngine = Submit | Abort | Hello | Goodbye | AskStats | AskLooks


class Logprobs(msgspec.Struct, array_like=True):
    """Candidates of one token: the sampled one first, then the best in falling order."""

    token_ids: list[int]
    logprobs: list[float]
    rank: int = 0


class Account(msgspec.Struct, array_like=True):
    """What a finished answer cost. Times are seconds on the engine's monotonic clock, which all processes of a machine share."""

    arrival_time: float
    first_scheduled_time: float
    first_token_time: float
    finished_time: float
    num_preemptions: int = 0


class News(msgspec.Struct, array_like=True):
    """What a step brought to one answer. `finish_reason`: stop, length, abort, error, or None while it runs."""

    rid: str
    index: int
    token_ids: list[int]
    finish_reason: str | None = None
    stop_reason: int | None = None
    message: str = ""
    num_cached_tokens: int = 0
    logprobs: list[Logprobs] | None = None
    prompt_logprobs: list[Logprobs | None] | None = None
    account: Account | None = None
    pooled: list[float] | None = None


class Step(msgspec.Struct, array_like=True, tag="step"):
    """The news of all this worker's answers: one message a step. Most of it is bare tokens: `tokens[i]` is the next one
    of the answer with the ticket `tickets[i]`."""

    tickets: list[int]
    tokens: list[int]
    news: list[News]


class Accepted(msgspec.Struct, array_like=True, tag="accepted"):
    """A request is in the engine's inbox: from here on it ends by its news."""

    rid: str


class Refused(msgspec.Struct, array_like=True, tag="refused"):
    """A request did not start. `status` is the HTTP status that fits: 400 for bad input, 503 for a full queue."""

    rid: str
    status: int
    message: str


class Ready(msgspec.Struct, array_like=True, tag="ready"):
    """The engine is loaded. `info`: what /version, /v1/models and the start-up ledger show."""

    protocol: int
    max_model_len: int
    vocab_size: int
    eos_token_ids: list[int]
    model_path: str
    generation_defaults: dict[str, Any]
    info: dict[str, Any]


class Stats(msgspec.Struct, array_like=True, tag="stats"):
    """A look at the engine; plain numbers by name."""

    ticket: int
    values: dict[str, float]
    loop_age: float
    """Seconds since the loop was last seen to take a step, or to have nothing to do."""
    preemptions: list[tuple[str, str, int]]
    """Kind, reason, how many."""


class Look(msgspec.Struct, array_like=True):
    """How one answer stands in the engine. Times are seconds; None: has not happened."""

    rid: str
    """Of answer i of n: `rid/i`."""
    tenant: str
    state: str
    """waiting | running | retracted | swapping_out | swapped | swapping_in"""
    prefilling: bool
    wait_code: str
    """Why it is not in the step; none: it is. docs/server.md lists the codes."""
    wait: str
    """The same as a sentence."""
    needed: int
    free: int
    evictable: int
    place: int
    """In the waiting queue, from 0; -1: not in it."""
    prompt_len: int
    num_outputs: int
    computed: int
    length_limit: int
    num_blocks: int
    priority: float
    age: float
    queue_time: float | None
    time_to_first_token: float | None
    prefill_steps: int
    decode_steps: int
    retractions: int
    swaps: int
    cached_tokens: int


class Looks(msgspec.Struct, array_like=True, tag="looks"):
    """How the answers stand, and the numbers of Stats. `looks` None: the loop did not answer in time."""

    ticket: int
    looks: list[Look] | None
    values: dict[str, float]


class EngineDown(msgspec.Struct, array_like=True, tag="down"):
    """Said by the supervisor: the engine process ended; every open request of it is lost."""

    reason: str


ToWorker = Step | Accepted | Refused | Ready | Stats | Looks | EngineDown

_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
decode_to_worker = msgspec.msgpack.Decoder(ToWorker).decode
