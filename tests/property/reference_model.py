"""What must come out, said independently of the engine: the tokens and the end of every request, and when it must be refused.

The scripted executor samples a hash of the context and the seed; this file says the same function a second time, in
plain Python, and runs one request alone on it. A request's answer may depend on nothing else: not on its batch, its
chunks, its preemptions, the prefix cache or the steps in flight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MASK = (1 << 64) - 1
EMPTY_CONTEXT = 0x5370616365546F6B


def mix(z: int) -> int:
    """splitmix64's finaliser."""
    z = (z + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def rotl(z: int, n: int) -> int:
    return ((z << n) | (z >> (64 - n))) & MASK


@dataclass(frozen=True, slots=True)
class Rule:
    """How the pretend model samples; windows holds one entry a KV group, 0 for full attention."""

    vocab_size: int = 100
    eos: int = -1
    eos_per_mille: int = 0
    row_failures_per_million: int = 0
    windows: tuple[int, ...] = (0,)


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the model sees it: a child of n > 1 is a request of its own, with its own seed."""

    prompt: tuple[int, ...]
    max_tokens: int
    seed: int
    stop: tuple[int, ...] = ()
    """Tokens that end the answer, end-of-sequence included (unless it is ignored)."""
    min_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    tokens: tuple[int, ...]
    finish_reason: str
    """stop, length or error."""


def context_hash(tokens: Sequence[int], window: int, known: tuple[int, int] | None = None) -> int:
    """The hash of what the last token sees; `known` is (length, hash) of a shorter context without a window."""
    begin = max(0, len(tokens) - window) if window else 0
    value = EMPTY_CONTEXT
    if known is not None and not window:
        begin, value = known
    for position in range(begin, len(tokens)):
        value = mix(value ^ ((tokens[position] << 32) | position))
    return value


def draw(context: int, seed: int, position: int) -> int:
    return mix(context ^ mix((seed + position) & MASK))


def sample(rule: Rule, request: Request, context: int, position: int) -> int:
    bits = draw(context, request.seed, position)
    early = position < len(request.prompt) + request.min_tokens
    for _ in range(64):
        token = bits % rule.vocab_size
        if rule.eos >= 0 and (bits >> 32) % 1000 < rule.eos_per_mille:
            token = rule.eos
        if not (early and token in request.stop):
            break
        bits = mix(bits)
    return token


def expected_answer(rule: Rule, request: Request) -> Answer:
    """Runs one request alone, to its end."""
    tokens = list(request.prompt)
    known: list[tuple[int, int] | None] = [None] * len(rule.windows)
    while True:
        parts = []
        for group, window in enumerate(rule.windows):
            value = context_hash(tokens, window, known[group])
            known[group] = (len(tokens), value)
            parts.append(value)
        context = parts[0]
        for group, part in enumerate(parts[1:], start=1):
            context = mix(context ^ rotl(part, group))
        position = len(tokens)
        bits = draw(context, request.seed, position)
        output = tuple(tokens[len(request.prompt) :])
        if mix(bits ^ 0x4E614E526F77) % 1_000_000 < rule.row_failures_per_million:
            return Answer(output, "error")
        token = sample(rule, request, context, position)
        tokens.append(token)
        output += (token,)
        if token in request.stop and len(output) >= request.min_tokens:
            return Answer(output, "stop")
        if len(output) >= request.max_tokens:
            return Answer(output, "length")


def child_seed(seed: int, child: int) -> int:
    """Of answer `child` of a request with n > 1."""
    return seed if child == 0 else mix((seed + child * 0x9E3779B97F4A7C15) & MASK)


def blocks_of(length: int, block_size: int) -> int:
    return -(-length // block_size)


def can_ever_fit(request: Request, *, num_blocks: int, block_size: int) -> bool:
    """Whether a request alone in the engine can reach its declared end: the KV of all but its last token, at once."""
    return blocks_of(len(request.prompt) + request.max_tokens - 1, block_size) <= num_blocks - 1
