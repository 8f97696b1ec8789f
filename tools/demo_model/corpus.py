"""Training rows of the demo model: texts from stoker.demo_model, packed into rows of token ids by worker processes."""

from __future__ import annotations

import multiprocessing as mp
import os
import queue
from collections.abc import Iterator
from multiprocessing.queues import Queue
from random import Random
from typing import Any

import numpy as np

from stoker.demo_model.chat import ANY_STORY_REQUESTS, SMALL_TALK, SYSTEM_TEXTS, story_request
from stoker.demo_model.recall import Fact, FactMaker, ask
from stoker.demo_model.stories import filler, make_story
from stoker.demo_model.words import pick

END, USER, ASSISTANT, SYSTEM = SPECIAL_TOKENS = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
STORY, RECALL = 0, 1

_CHARACTERS_PER_TOKEN = 4.5
_ROWS_PER_CHUNK = 64


def _system(rng: Random) -> str:
    return f"{SYSTEM}{pick(rng, SYSTEM_TEXTS)}{END}" if rng.random() < 0.2 else ""


def story_document(rng: Random) -> str:
    """Stories, plain or told in a chat of one or a few turns, each ended; sometimes only small talk."""
    if rng.random() < 0.5:
        return make_story(rng).text + END
    parts = [_system(rng)]
    while True:
        if rng.random() < 0.15:
            said, answer = pick(rng, SMALL_TALK)
        else:
            story = make_story(rng)
            if rng.random() < 0.2:
                said = pick(rng, ANY_STORY_REQUESTS)
            else:
                said = story_request(rng, pick(rng, story.topics))
            answer = story.text
        parts.append(f"{USER}{said}{END}{ASSISTANT}{answer}{END}")
        if rng.random() < 0.6:
            return "".join(parts)


def _context(rng: Random, maker: FactMaker, characters: int) -> tuple[str, list[Fact]]:
    sentences: list[str] = []
    facts: list[Fact] = []
    filler_share = rng.random() * 0.4
    for fact in maker.facts():
        if rng.random() < filler_share:
            sentences.append(filler(rng))
            characters -= len(sentences[-1]) + 1
        sentences.append(fact.statement)
        facts.append(fact)
        characters -= len(fact.statement) + 1
        if characters <= 0:
            break
    return " ".join(sentences), facts


def recall_document(rng: Random, maker: FactMaker, tokens: int) -> str:
    """A context of about `tokens` tokens and questions about its facts, plain or as a chat."""
    context, facts = _context(rng, maker, int(tokens * _CHARACTERS_PER_TOKEN))
    rng.shuffle(facts)
    if rng.random() < 0.65:
        return context + "".join(f"{ask(fact.question)} {fact.answer}{END}" for fact in facts)
    parts = [_system(rng)]
    first = context + pick(rng, ("\n", " "))
    for fact in facts:
        parts.append(f"{USER}{first}{fact.question}{END}{ASSISTANT}{fact.reply}{END}")
        first = ""
    return "".join(parts)


def make_row(rng: Random, tokenizer: Any, length: int, recall_share: float) -> np.ndarray:
    """`length + 1` token ids of packed documents, and the row's kind as one number more; uint16."""
    kind = RECALL if rng.random() < recall_share else STORY
    ids: list[int] = []
    maker = FactMaker(rng, unseen=False)
    while len(ids) < length + 1:
        if kind == STORY:
            text = story_document(rng)
        else:
            # Mostly leave room for many questions; sometimes fill the row so that the longest distances are learnt too.
            left = length - len(ids)
            longest = left - 40 if rng.random() < 0.3 else int(left * 0.6)
            text = recall_document(rng, maker, 30 + int(rng.random() * max(0, longest - 30)))
        ids += tokenizer.encode(text).ids
    return np.array([*ids[: length + 1], kind], dtype=np.uint16)


def _work(
    tokenizer_file: str, seed: int, quotas: list[tuple[int, int]], recall_share: float, out: Queue[Any]
) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(tokenizer_file)
    rng = Random(seed)
    for length, rows in quotas:
        for start in range(0, rows, _ROWS_PER_CHUNK):
            count = min(_ROWS_PER_CHUNK, rows - start)
            out.put(
                (length, np.stack([make_row(rng, tokenizer, length, recall_share) for _ in range(count)]))
            )


class RowFactory:
    """Worker processes that make rows of several lengths, shortest first.

    `quotas` says how many rows of each length to make in all.
    """

    def __init__(
        self, tokenizer_file: str, seed: int, workers: int, quotas: dict[int, int], recall_share: float
    ) -> None:
        context = mp.get_context("spawn")
        self._queue: Queue[Any] = context.Queue(maxsize=512)
        each = [
            (length, -(-rows // (workers * _ROWS_PER_CHUNK)) * _ROWS_PER_CHUNK)
            for length, rows in quotas.items()
        ]
        self._workers = [
            context.Process(
                target=_work,
                args=(tokenizer_file, seed * 1000 + i, each, recall_share, self._queue),
                daemon=True,
            )
            for i in range(workers)
        ]
        for worker in self._workers:
            worker.start()

    def chunks(self, *, wait: bool) -> Iterator[tuple[int, np.ndarray]]:
        """The chunks that are ready (length and rows); with `wait`, at least one unless all workers are done."""
        if wait:
            while (chunk := self._next(timeout=1.0)) is None and any(
                worker.is_alive() for worker in self._workers
            ):
                pass
            if chunk is not None:
                yield chunk
        while (chunk := self._next(timeout=0.0)) is not None:
            yield chunk

    def _next(self, timeout: float) -> tuple[int, np.ndarray] | None:
        try:
            return self._queue.get(timeout=timeout) if timeout else self._queue.get_nowait()
        except queue.Empty:
            return None

    def close(self) -> None:
        """End the workers, whether they are done or not."""
        for worker in self._workers:
            worker.terminate()
