"""`AsyncLLM`: many requests at once from asyncio, each an async iterator; the engine runs on its own thread."""

from __future__ import annotations

import asyncio
import itertools
import threading
import weakref
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from stoker.assemble import Assembly
from stoker.config import EngineConfig
from stoker.llm import check_params, default_sampling_params, load_tokenizer
from stoker.outputs import RequestOutput
from stoker.sampling_params import SamplingParams
from stoker.text import Prompt, Tokenizer, tokenize_prompts

if TYPE_CHECKING:
    from stoker.engine.engine import Engine
    from stoker.engine.output import EngineOutput

# Longer prompts are tokenized on a thread, so that they do not hold up everybody else's tokens.
_LONG_TEXT = 8192
# How long the reader waits at a time; it bounds only how soon close() is noticed.
_WAIT_SECONDS = 0.2


class AsyncLLM:
    """A model served to any number of coroutines, on one or several event loops.

    Takes the options of `LLM`. Use it as an async context manager, or call `close()`; at the interpreter's exit it
    closes by itself.
    """

    def __init__(self, model: str, **options: Any) -> None:
        config = EngineConfig.from_kwargs(model, **options)
        from stoker.engine.engine import Engine  # imports torch

        self._set_up(Engine(config))

    @classmethod
    def from_engine(cls, engine: Engine, tokenizer: Tokenizer | None = None) -> AsyncLLM:
        """Around an engine that was built already and that nobody drives."""
        llm = cls.__new__(cls)
        llm._set_up(engine, tokenizer)
        return llm

    def _set_up(self, engine: Engine, tokenizer: Tokenizer | None = None) -> None:
        self.engine = engine
        self.tokenizer = tokenizer or load_tokenizer(engine)
        self._next_rid = itertools.count()
        self._reader = _Reader(engine)
        self._closer = weakref.finalize(self, self._reader.close)  # also at exit

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Yields the request's RequestOutput as it stands, whenever there is news; the last one is `finished`.

        A consumer that is slower than the engine sees several tokens at a time and slows nobody down. A consumer
        that is cancelled, or closes the iterator, ends the request at once. Raises ValueError on the first step for a
        bad prompt or parameter, and RuntimeError if the engine dies.
        """
        request = await self._tokenize(prompt)
        params = check_params(sampling_params or default_sampling_params(self.engine), self.tokenizer)
        count = next(self._next_rid)
        name = request_id if request_id is not None else str(count)
        # The engine's own name is never used twice, so that late news of a request cannot reach a namesake.
        rid = f"{name}@{count}"
        assembly = Assembly(name, request.text, request.token_ids, params, self.tokenizer)
        stream = _Stream(rid, assembly, asyncio.get_running_loop())
        self._reader.open(stream)
        added = False
        try:
            self.engine.add_request(
                rid, request.token_ids, params, priority=priority, cache_salt=request.cache_salt
            )
            added = True
            finished = False
            while not finished:
                await stream.wait()
                output = assembly.output()
                finished = output.finished  # of what is shown: the request may end while the consumer is away
                yield output
        finally:
            self._reader.forget(stream)
            if added and not assembly.finished and stream.failure is None:
                self.engine.abort(rid)

    async def abort(self, request_id: str) -> None:
        """Ends a request; its iterator yields a last output with finish reason `abort`. Unknown ids are ignored."""
        rid = self._reader.find(request_id)
        if rid is not None:
            self.engine.abort(rid)

    def get_tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer; ValueError with `skip_tokenizer_init=True`."""
        if self.tokenizer is None:
            raise ValueError("there is no tokenizer: skip_tokenizer_init=True")
        return self.tokenizer

    def close(self) -> None:
        """Ends what still runs, joins the threads and gives the memory back. Safe to call twice."""
        self._closer()

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    async def _tokenize(self, prompt: Prompt) -> Any:
        text = prompt.get("prompt") if isinstance(prompt, dict) else prompt
        try:
            if isinstance(text, str) and len(text) > _LONG_TEXT:
                return (await asyncio.to_thread(tokenize_prompts, [prompt], self.tokenizer))[0]
            return tokenize_prompts([prompt], self.tokenizer)[0]
        except ValueError as error:
            raise ValueError(str(error).removeprefix("prompts[0]: ")) from None


class _Stream:
    """One consumer: its request's assembly is touched on its event loop's thread only."""

    __slots__ = ("_news", "assembly", "failure", "loop", "rid")

    def __init__(self, rid: str, assembly: Assembly, loop: asyncio.AbstractEventLoop) -> None:
        self.rid = rid
        self.assembly = assembly
        self.loop = loop
        self.failure: str | None = None
        self._news = asyncio.Event()

    def take(self, engine: Engine, news: EngineOutput) -> None:
        if self.assembly.update(news):
            engine.abort(news.rid, news.index)
        self._news.set()

    def fail(self, failure: str) -> None:
        self.failure = failure
        self._news.set()

    async def wait(self) -> None:
        """Returns when there is news since the last call."""
        await self._news.wait()
        self._news.clear()
        if self.failure is not None and not self.assembly.finished:
            raise RuntimeError(self.failure)


class _Reader:
    """The thread that empties the engine's outbox and hands each event loop its share, once a step."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._streams: dict[str, _Stream] = {}  # by the engine's rid
        self._rids: dict[str, str] = {}  # by the user's request id
        self._lock = threading.Lock()
        self._closing = False
        self._failure: str | None = None
        engine.start()
        self._thread = threading.Thread(target=self._run, name="stoker-outbox", daemon=True)
        self._thread.start()

    def open(self, stream: _Stream) -> None:
        with self._lock:
            if self._failure is not None:
                raise RuntimeError(self._failure)
            if stream.assembly.rid in self._rids:
                raise ValueError(
                    f"request_id={stream.assembly.rid!r} is in use; ids must be unique among running requests"
                )
            self._streams[stream.rid] = stream
            self._rids[stream.assembly.rid] = stream.rid

    def find(self, request_id: str) -> str | None:
        with self._lock:
            return self._rids.get(request_id)

    def forget(self, stream: _Stream) -> None:
        with self._lock:
            del self._streams[stream.rid]
            del self._rids[stream.assembly.rid]

    def close(self) -> None:
        """Ends the engine, then the thread; what still streams gets what the engine says last, or an error."""
        if self._closing:
            return
        self._closing = True
        self._engine.close()
        if self._thread is not threading.current_thread():
            self._thread.join()
        self._fail("the engine was closed")

    def _run(self) -> None:
        try:
            while not self._closing:
                self._deliver(self._engine.wait(_WAIT_SECONDS))
        except Exception as error:  # whatever it was, nobody may wait for ever
            self._fail(f"the engine died: {error}")

    def _deliver(self, outputs: list[EngineOutput]) -> None:
        if not outputs:
            return
        shares: dict[asyncio.AbstractEventLoop, list[tuple[_Stream, EngineOutput]]] = {}
        with self._lock:
            for news in outputs:
                stream = self._streams.get(news.rid)
                if stream is not None:
                    shares.setdefault(stream.loop, []).append((stream, news))
        for loop, share in shares.items():
            self._call(loop, self._hand_over, share)

    def _hand_over(self, share: list[tuple[_Stream, EngineOutput]]) -> None:
        for stream, news in share:
            stream.take(self._engine, news)

    def _fail(self, failure: str) -> None:
        with self._lock:
            self._failure = self._failure or failure
            left = list(self._streams.values())
        for stream in left:
            self._call(stream.loop, stream.fail, failure)

    @staticmethod
    def _call(loop: asyncio.AbstractEventLoop, function: Any, argument: object) -> None:
        try:
            loop.call_soon_threadsafe(function, argument)
        except RuntimeError:  # the loop is closed, and its consumers with it
            if not loop.is_closed():
                raise
