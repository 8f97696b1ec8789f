"""What rules tokens out, step by step: grammars of structured output, compiled on a thread of their own and kept; allowed
tokens; bad words. The loop asks for masks while the device computes.

The loop's mask source (`stoker._core.loop`): `fill` and `forget` come from the thread that drives, everything else from
whoever adds requests. An answer's state follows from its tokens, which the loop tells as they are committed; so overlap,
preemption and n > 1 need nothing here.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stoker.engine.token_rules import TokenRules, bitmask
from stoker.structured_outputs import check_source, parser_limits, refusal

if TYPE_CHECKING:
    from stoker.sampling_params import SamplingParams

COMPILE_SECONDS = 20.0
"""A grammar that takes longer is refused; what it may cost at all is bounded by llguidance's limits."""
_CACHED = 256
_FEW = 4
"""Masks that are made one after another: waking threads takes longer."""

Done = Callable[[str | None], None]
"""Called once: with None when the grammar is there, else with why it is refused."""


class _Compiled:
    """A grammar under way or done. `waiting` are told when it is; guarded by the Grammars' lock."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.matcher: Any = None
        self.error: str | None = None
        self.done = False
        self.waiting: list[Done] = []


@dataclass(slots=True)
class _Use:
    """What one request's masks are made of, and how a grammar's end is minded."""

    compiled: _Compiled | None
    """Its grammar, if it has one."""
    rules: TokenRules | None
    answers_left: int
    min_tokens: int
    stops: npt.NDArray[np.int32] | None
    """A mask of the tokens that the request wants to end at besides end-of-sequence tokens, if there are any."""
    never_ends: bool

    @property
    def special(self) -> bool:
        """Whether its masks need more than llguidance says."""
        return self.min_tokens > 0 or self.never_ends or self.stops is not None


class Grammars:
    """All grammars of one engine.

    `tokenizer_json()` gives the tokenizer's tokenizer.json as text; it is asked once, when the first grammar comes.
    `eos_token_ids` end an answer. Masks are int32 [rows, ceil(vocab_size / 32)].
    """

    def __init__(
        self, tokenizer_json: Callable[[], str], vocab_size: int, eos_token_ids: tuple[int, ...]
    ) -> None:
        self.tokenizer_json = tokenizer_json
        self._vocab_size = vocab_size
        self._words = -(-vocab_size // 32)
        self._eos = eos_token_ids
        ends = [token for token in eos_token_ids if token < vocab_size]
        self._ends = bitmask(ends, self._words)
        self._end_bits = [divmod(token, 32) for token in ends]
        self._lock = threading.Lock()
        self._cache: OrderedDict[str, _Compiled] = OrderedDict()
        self._uses: dict[int, _Use] = {}
        self._next = 1
        self._pool: ThreadPoolExecutor | None = None
        self._tokenizer: Any = None
        # The driving thread's own.
        self._matchers: dict[int, Any] = {}
        self._tails: dict[
            int, list[int]
        ] = {}  # an answer's last tokens, where words of several are ruled out
        self._threads = min(8, (os.cpu_count() or 1) // 2)
        self._executor: Any = None
        self._masks = np.zeros((16, self._words), np.int32)

    # --- whoever adds requests ------------------------------------------------------------------------------------------

    def open(self, params: SamplingParams) -> int:
        """A number for the grammar of one request (all its n answers); begins to compile what is new.

        ValueError with the compiler's words for a grammar that is wrong whatever the tokenizer; what only the tokenizer
        can tell comes through `when_done`. `close` or the ends of its answers give the number back.
        """
        source = self._source(params)
        with self._lock:
            compiled = None if source is None else self._compiled(source)
            number = self._next
            self._next = self._next % (2**31 - 1) + 1
            stops = set(params.stop_token_ids) - set(self._eos)
            self._uses[number] = _Use(
                compiled,
                TokenRules.of(params, self._vocab_size),
                params.n,
                params.min_tokens,
                bitmask(stops, self._words) if stops else None,
                params.ignore_eos,
            )
            return number

    def _source(self, params: SamplingParams) -> str | None:
        """The grammar as llguidance reads it, looked over."""
        structured = params.structured_outputs
        if structured is None:
            return None
        if not self._eos:
            raise ValueError("structured_outputs needs a model with an end-of-sequence token")
        try:
            source = structured.source()
        except ImportError as error:
            raise ValueError(str(error)) from None
        with self._lock:
            known = source in self._cache
        if not known:
            check_source(source)
        return source

    def _compiled(self, source: str) -> _Compiled:
        """Under the lock: the grammar, which begins to be compiled where it is new."""
        compiled = self._cache.get(source)
        if compiled is None:
            compiled = self._cache[source] = _Compiled(source)
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, "stoker-grammars")
            timer = threading.Timer(COMPILE_SECONDS, self._give_up, (compiled,))
            timer.daemon = True
            timer.start()
            self._pool.submit(self._compile, compiled, timer)
            if len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        self._cache.move_to_end(source)
        return compiled

    def is_ready(self, number: int) -> bool:
        """Whether masks can be made. ValueError if the grammar is refused."""
        with self._lock:
            compiled = self._uses[number].compiled
            if compiled is None:
                return True
            if compiled.error is not None:
                raise ValueError(compiled.error)
            return compiled.done

    def when_done(self, number: int, tell: Done) -> None:
        """Calls `tell` when the grammar is compiled or refused: now, or later on the compiler's thread."""
        with self._lock:
            use = self._uses.get(number)
            if use is None:
                return  # its request has ended meanwhile
            compiled = use.compiled
            if compiled is not None and not compiled.done:
                compiled.waiting.append(tell)
                return
        tell(None if compiled is None else compiled.error)

    def close(self, number: int) -> None:
        """Gives a number back whose request was not taken."""
        with self._lock:
            self._uses.pop(number, None)

    def shutdown(self) -> None:
        """Lets the compiler's thread end."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def _compile(self, compiled: _Compiled, timer: threading.Timer) -> None:
        matcher, error = None, None
        try:
            import llguidance

            if self._tokenizer is None:
                self._tokenizer = llguidance.LLTokenizer(
                    self.tokenizer_json(), n_vocab=self._vocab_size, eos_token=list(self._eos)
                )
            matcher = llguidance.LLMatcher(
                self._tokenizer, compiled.source, log_level=0, limits=parser_limits()
            )
            if matcher.is_error():
                error = refusal(matcher.get_error())
        except Exception as failure:  # of the tokenizer, mostly: nothing may be left waiting
            error = f"structured_outputs: the tokenizer cannot be used for grammars ({failure})"
        timer.cancel()
        self._settle(compiled, matcher, error)

    def _give_up(self, compiled: _Compiled) -> None:
        why = f"the grammar took longer than {COMPILE_SECONDS:g} s to compile"
        self._settle(compiled, None, refusal(why))

    def _settle(self, compiled: _Compiled, matcher: Any, error: str | None) -> None:
        with self._lock:
            if compiled.done:
                return
            compiled.matcher, compiled.error, compiled.done = matcher, error, True
            waiting, compiled.waiting = compiled.waiting, []
        for tell in waiting:
            tell(error)

    # --- the loop -------------------------------------------------------------------------------------------------------

    def fill(
        self, rows: list[tuple[int, int, int, list[int]]]
    ) -> tuple[npt.NDArray[np.int32], list[tuple[int, str]]]:
        """Masks of answers about to sample, in their order; see `stoker._core.loop`."""
        if len(rows) > len(self._masks):
            self._masks = np.zeros((2 * len(rows), self._words), np.int32)
        masks = self._masks[: len(rows)]
        failed = self._grammar_masks(rows, masks)
        for index, (key, number, _, tokens) in enumerate(rows):
            use = self._uses[number]
            if use.rules is None:
                continue
            tail = self._tails.setdefault(key, [])
            if not use.rules.apply(masks[index], tail, tokens, alone=use.compiled is None):
                failed.append((index, refusal("allowed_token_ids and bad_words leave no token here")))
        return masks, failed

    def _grammar_masks(
        self, rows: list[tuple[int, int, int, list[int]]], masks: npt.NDArray[np.int32]
    ) -> list[tuple[int, str]]:
        """Fills the masks of the rows that have a grammar; returns those that cannot go on."""
        matchers: list[tuple[Any, int]] = []
        consume: list[tuple[Any, int]] = []
        for index, (key, number, _, tokens) in enumerate(rows):
            compiled = self._uses[number].compiled
            if compiled is None:
                continue
            matcher = self._matchers.get(key)
            if matcher is None:
                matcher = self._matchers[key] = compiled.matcher.deep_copy()
            if len(tokens) == 1:
                consume.append((matcher, tokens[0]))
            elif tokens:
                matcher.consume_tokens(tokens)
            matchers.append((matcher, index))
        if not matchers:
            return []
        if self._threads > 1 and len(matchers) > _FEW:
            self._fill_on_threads(matchers, consume, masks)
        else:
            for matcher, token in consume:
                matcher.consume_token(token)
            size = 4 * self._words
            for matcher, index in matchers:
                matcher.unsafe_compute_mask_ptr(masks.ctypes.data + index * size, size)
        failed = []
        for matcher, index in matchers:
            _, number, outputs, _ = rows[index]
            if matcher.is_error():
                failed.append((index, refusal(matcher.get_error())))
                self._drop(self._uses[number].compiled)
            elif (use := self._uses[number]).special:
                self._mind_ends(use, matcher, masks[index], outputs)
        return failed

    def _drop(self, compiled: _Compiled | None) -> None:
        """Who comes next compiles anew: all matchers of a grammar learn the states of one lexer, and when those are too many
        it takes no more of any."""
        with self._lock:
            if compiled is not None and self._cache.get(compiled.source) is compiled:
                del self._cache[compiled.source]

    def _fill_on_threads(
        self, matchers: list[tuple[Any, int]], consume: list[tuple[Any, int]], masks: npt.NDArray[np.int32]
    ) -> None:
        if self._executor is None:
            import llguidance

            self._executor = llguidance.LLExecutor(self._threads)
        if consume:
            self._executor.consume_token_par(consume)
        self._executor.unsafe_compute_mask_ptr(matchers, masks.ctypes.data, 4 * self._words, len(masks))

    def _mind_ends(self, use: _Use, matcher: Any, mask: npt.NDArray[np.int32], outputs: int) -> None:
        """Ends of any kind only where the grammar accepts and the request wants one, unless nothing else can follow."""
        # Mostly the grammar lets nothing end here, and there is nothing to mind.
        if use.stops is None and not any(int(mask[word]) >> bit & 1 for word, bit in self._end_bits):
            return
        before = mask.copy()
        may_end = outputs >= use.min_tokens and matcher.is_accepting()
        if not may_end or use.never_ends:
            mask &= ~self._ends
        if use.stops is not None and may_end:
            mask |= use.stops
        elif use.stops is not None:
            mask &= ~use.stops
        if not mask.any():
            mask[:] = before

    def forget(self, key: int, number: int) -> None:
        """An answer has ended."""
        self._matchers.pop(key, None)
        self._tails.pop(key, None)
        with self._lock:
            use = self._uses.get(number)
            if use is not None:
                use.answers_left -= 1
                if use.answers_left <= 0:
                    del self._uses[number]
