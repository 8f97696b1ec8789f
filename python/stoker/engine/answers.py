"""From the loop's flat arrays to an `EngineOutput` for each answer with news."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stoker.engine.output import EngineOutput, StepNews, TokenLogprobs

if TYPE_CHECKING:
    from stoker.sampling_params import SamplingParams

FINISH_REASONS = (None, "stop", "length", "abort", "error")


@dataclass(slots=True)
class Answer:
    """One of a request's n answers while it is under way."""

    rid: str
    index: int
    prompt: Sequence[int]
    stop_token_ids: frozenset[int]
    wants_logprobs: bool
    wants_prompt_logprobs: bool
    scores: dict[int, TokenLogprobs] = field(default_factory=dict)
    """Of the prompt's token at a position, as they come."""


class Answers:
    """The answers under way, by the keys that the loop gave them."""

    def __init__(self) -> None:
        self._by_key: dict[int, Answer] = {}
        self._keys: dict[str, list[int]] = {}
        self._tickets: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def __contains__(self, rid: str) -> bool:
        return rid in self._keys

    def add(
        self, rid: str, key: int, prompt: Sequence[int], params: SamplingParams, ticket: int | None = None
    ) -> None:
        """A request whose n answers have the keys `key`, `key + 1`, ..., and the tickets `ticket`, `ticket + 1`, ... for
        `step_news`."""
        if ticket is not None and params.logprobs is None and params.prompt_logprobs is None:
            self._tickets.update((key + index, ticket + index) for index in range(params.n))
        self._keys[rid] = list(range(key, key + params.n))
        stops = frozenset(params.stop_token_ids or ())
        for index in range(params.n):
            self._by_key[key + index] = Answer(
                rid,
                index,
                prompt,
                stops,
                wants_logprobs=params.logprobs is not None,
                wants_prompt_logprobs=params.prompt_logprobs is not None,
            )

    def keys(self, rid: str, index: int | None) -> list[int]:
        """Keys of a request's answers that are still under way, or of one of them."""
        keys = self._keys.get(rid, [])
        wanted = keys if index is None else keys[index : index + 1]
        return [key for key in wanted if key in self._by_key]

    def to_abort(self, rid: str, index: int | None) -> list[int]:
        """`keys`, for aborting them: from now on none of their tokens is a bare one, so that a ticket may be used again."""
        keys = self.keys(rid, index)
        for key in keys:
            self._tickets.pop(key, None)
        return keys

    def step_news(self, outputs: Any) -> StepNews:
        """What `_core.loop.Outputs` holds, the bare tokens of answers with a ticket apart."""
        keys, tokens = outputs.token_keys.tolist(), outputs.tokens.tolist()
        whole = set(outputs.end_keys.tolist())  # what comes with an end stays with it
        news, bare = StepNews([], [], []), self._tickets
        others = []
        for place, key in enumerate(keys):
            ticket = bare.get(key)
            if ticket is None or key in whole:
                others.append(place)
            else:
                news.tickets.append(ticket)
                news.tokens.append(tokens[place])
        if others or whole or outputs.num_scores or outputs.num_pooled:
            news.outputs = self.news(outputs, others)
        return news

    def news(self, outputs: Any, places: Sequence[int] | None = None) -> list[EngineOutput]:
        """What `_core.loop.Outputs` holds, in the order of first mention; of its tokens those at `places` (None: all)."""
        made: dict[int, EngineOutput] = {}
        if outputs.num_scores:
            self._take_scores(outputs)
        if outputs.num_tokens:
            self._take_tokens(outputs, made, range(outputs.num_tokens) if places is None else places)
        if outputs.num_pooled:
            vectors = outputs.pooled.reshape(-1, outputs.pooled_width)
            for key, vector in zip(outputs.pooled_keys.tolist(), vectors, strict=True):
                output = self._of(key, made)
                if output is not None:
                    output.pooled = vector.tolist()
        if outputs.num_ends:
            self._take_ends(outputs, made)
        return list(made.values())

    def _take_scores(self, outputs: Any) -> None:
        indptr, ranks = outputs.score_logprob_indptr.tolist(), outputs.score_ranks.tolist()
        ids, values = outputs.score_logprob_ids.tolist(), outputs.score_logprobs.tolist()
        columns = zip(
            outputs.score_keys.tolist(),
            outputs.score_positions.tolist(),
            outputs.scores.tolist(),
            strict=True,
        )
        for i, (key, position, score) in enumerate(columns):
            answer = self._by_key.get(key)
            if answer is None:
                continue
            part = slice(indptr[i], indptr[i + 1])
            if ids[part]:
                entry = TokenLogprobs(ids[part], values[part], ranks[i])
            else:
                entry = TokenLogprobs([int(answer.prompt[position])], [score], 0)
            answer.scores[position] = entry

    def _of(self, key: int, made: dict[int, EngineOutput]) -> EngineOutput | None:
        output = made.get(key)
        if output is None:
            answer = self._by_key.get(key)
            if answer is None:
                return None
            output = made[key] = EngineOutput(answer.rid, answer.index)
            if answer.wants_prompt_logprobs:
                answer.wants_prompt_logprobs = False
                output.prompt_logprobs = _prompt_logprobs(answer)
            if answer.wants_logprobs:
                output.new_logprobs = []
        return output

    def _take_tokens(self, outputs: Any, made: dict[int, EngineOutput], places: Sequence[int]) -> None:
        keys, tokens = outputs.token_keys.tolist(), outputs.tokens.tolist()
        indptr = outputs.logprob_indptr.tolist()
        if not indptr:
            for i in places:
                output = made.get(keys[i]) or self._of(keys[i], made)
                if output is not None:
                    output.new_token_ids.append(tokens[i])
            return
        ids, values = outputs.logprob_ids.tolist(), outputs.logprobs.tolist()
        ranks = outputs.logprob_ranks.tolist()
        for i in places:
            output = self._of(keys[i], made)
            if output is not None:
                output.new_token_ids.append(tokens[i])
                if output.new_logprobs is not None:
                    part = slice(indptr[i], indptr[i + 1])
                    output.new_logprobs.append(TokenLogprobs(ids[part], values[part], ranks[i]))

    def _take_ends(self, outputs: Any, made: dict[int, EngineOutput]) -> None:
        columns = zip(
            outputs.end_keys.tolist(),
            outputs.finish_reasons.tolist(),
            outputs.stop_tokens.tolist(),
            outputs.cached_tokens.tolist(),
            outputs.num_preemptions.tolist(),
            (outputs.arrival_times * 1e-9).tolist(),
            (outputs.first_scheduled_times * 1e-9).tolist(),
            (outputs.first_token_times * 1e-9).tolist(),
            (outputs.finished_times * 1e-9).tolist(),
            outputs.messages,
            strict=True,
        )
        for key, reason, stop, cached, preemptions, arrival, scheduled, first, finished, message in columns:
            output = self._of(key, made)
            if output is None:
                continue
            answer = self._by_key.pop(key)
            self._tickets.pop(key, None)
            output.finish_reason = FINISH_REASONS[reason]
            output.stop_reason = stop if stop in answer.stop_token_ids else None
            output.num_cached_tokens, output.num_preemptions = cached, preemptions
            output.arrival_time, output.finished_time = arrival, finished
            output.first_scheduled_time, output.first_token_time = max(scheduled, 0.0), max(first, 0.0)
            output.message = message
            if not self.keys(answer.rid, None):
                del self._keys[answer.rid]


def _prompt_logprobs(answer: Answer) -> list[TokenLogprobs | None]:
    """One for each prompt token; the first has nothing before it."""
    result = [None, *(answer.scores.get(position) for position in range(1, len(answer.prompt)))]
    answer.scores.clear()
    return result
