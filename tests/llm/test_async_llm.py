"""`AsyncLLM` on a scripted engine: many consumers, cancellation, abort, failure, and no thread left behind."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from stoker import AsyncLLM, RequestOutput, SamplingParams
from stoker.text import Tokenizer
from support.fake_engine import FakeEngine

LONG = SamplingParams(max_tokens=40)
ENDLESS = SamplingParams(max_tokens=None, ignore_eos=True)


@pytest.fixture
def llm(engine: FakeEngine, letters: Tokenizer) -> Iterator[AsyncLLM]:
    before = threading.active_count()
    llm = AsyncLLM.from_engine(engine, letters)  # type: ignore[arg-type]
    yield llm
    llm.close()
    llm.close()
    assert threading.active_count() == before


def until(condition: Callable[[], bool]) -> None:
    """Waits for something that another thread is about to do."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.001)


async def last_of(
    llm: AsyncLLM, prompt: str, params: SamplingParams = LONG, request_id: str | None = None
) -> RequestOutput:
    last = None
    async for output in llm.generate(prompt, params, request_id):
        assert last is None or output.outputs[0].text.startswith(last.outputs[0].text)
        last = output
    assert last is not None
    assert last.finished
    return last


def test_many_at_once_each_get_their_own(llm: AsyncLLM) -> None:
    """200 consumers on one event loop, stop strings among them."""

    async def run() -> list[RequestOutput]:
        stop = SamplingParams(max_tokens=40, stop=("-",))
        return await asyncio.gather(
            *(last_of(llm, f"request-{i}", stop if i % 2 else LONG, f"r{i}") for i in range(200))
        )

    for i, output in enumerate(asyncio.run(run())):
        assert output.request_id == f"r{i}"
        assert output.outputs[0].text == ("request" if i % 2 else f"request-{i}")


def test_several_event_loops_share_one_engine(llm: AsyncLLM) -> None:
    """Each consumer is called on its own loop."""
    texts: list[str] = []
    threads = [
        threading.Thread(
            target=lambda i=i: texts.append(asyncio.run(last_of(llm, f"loop {i}")).outputs[0].text)
        )
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(texts) == [f"loop {i}" for i in range(4)]


def test_a_slow_consumer_sees_everything_and_holds_up_nobody(llm: AsyncLLM, engine: FakeEngine) -> None:
    """Tokens pile up for the slow one only; what it sees next has them all."""

    async def run() -> tuple[str, int]:
        slow = llm.generate("a" * 30, LONG)
        await anext(slow)
        assert (await last_of(llm, "quick")).outputs[0].text == "quick"
        await asyncio.to_thread(until, lambda: not engine.running)
        seen = [output.outputs[0].text async for output in slow]
        return seen[-1], len(seen)

    assert asyncio.run(run()) == ("a" * 30, 1)


@pytest.mark.parametrize("how", ["cancel", "aclose", "break"])
def test_a_consumer_that_goes_away_ends_its_request(llm: AsyncLLM, engine: FakeEngine, how: str) -> None:
    """Cancelled, closed or simply left: the engine stops working for nobody; others go on."""

    async def consume(started: asyncio.Event) -> None:
        async for _ in llm.generate("endless", ENDLESS):
            started.set()
            if how == "break":
                return

    async def run() -> None:
        started = asyncio.Event()
        if how == "aclose":
            stream = llm.generate("endless", ENDLESS)
            await anext(stream)
            await stream.aclose()
        else:
            task = asyncio.create_task(consume(started))
            await started.wait()
            if how == "cancel":
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            gc.collect()
            await asyncio.sleep(0)
        assert (await last_of(llm, "other")).outputs[0].text == "other"

    engine.max_model_len = 10**6
    asyncio.run(run())
    until(lambda: not engine.running)
    assert any(rid.startswith("0@") for rid, _ in engine.aborted)


def test_abort_by_name(llm: AsyncLLM, engine: FakeEngine) -> None:
    """The iterator ends with reason `abort`; a name that is unknown or has ended is ignored; it may be used again."""
    engine.max_model_len = 10**6

    async def run() -> None:
        await llm.abort("nobody")
        async for output in llm.generate("endless", ENDLESS, "mine"):
            if not output.finished:
                await llm.abort("mine")
        assert output.outputs[0].finish_reason == "abort"
        assert (await last_of(llm, "again", LONG, "mine")).outputs[0].finish_reason == "stop"

    asyncio.run(run())


def test_bad_requests_are_refused_and_forgotten(llm: AsyncLLM, engine: FakeEngine) -> None:
    """ValueError at the first step; the name is free again; a name in use is refused."""
    engine.max_model_len = 50

    async def run() -> None:
        for bad, message in [
            ("", "empty"),
            ([400], "vocabulary"),
            ("x" * 60, "at most 49"),
            ("x" * 9000, "at most 49"),
        ]:
            with pytest.raises(ValueError, match=message):
                await anext(llm.generate(bad, LONG, "name"))
        stream = llm.generate("endless", SamplingParams(max_tokens=None, ignore_eos=True), "name")
        await anext(stream)
        engine.delay = 0.001
        with pytest.raises(ValueError, match="in use"):
            await anext(llm.generate("x", LONG, "name"))
        await stream.aclose()
        assert (await last_of(llm, "fine", LONG, "name")).outputs[0].text == "fine"

    asyncio.run(run())


def test_a_dead_engine_ends_every_wait(letters: Tokenizer, engine: FakeEngine) -> None:
    """Running and later requests get an error that says why; nobody waits for ever."""
    engine.die_at_step, engine.max_model_len, engine.delay = 100, 10**6, 0.002

    async def run() -> None:
        llm = AsyncLLM.from_engine(engine, letters)  # type: ignore[arg-type]
        results = await asyncio.gather(
            *(last_of(llm, "x", ENDLESS) for _ in range(5)), return_exceptions=True
        )
        assert [type(result) for result in results] == [RuntimeError] * 5
        assert "device is lost" in str(results[0])
        with pytest.raises(RuntimeError, match="device is lost"):
            await last_of(llm, "x")
        llm.close()

    asyncio.run(run())


def test_close_ends_what_still_streams(letters: Tokenizer, engine: FakeEngine) -> None:
    """Consumers see an end, by the engine's last word or as an error."""
    engine.max_model_len = 10**6

    async def run() -> None:
        async with AsyncLLM.from_engine(engine, letters) as llm:  # type: ignore[arg-type]
            tasks = [asyncio.create_task(last_of(llm, "endless", ENDLESS)) for _ in range(3)]
            await asyncio.to_thread(until, lambda: len(engine.running) == 3)
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            ended = isinstance(result, RequestOutput) and result.outputs[0].finish_reason == "abort"
            assert ended or isinstance(result, RuntimeError), result

    asyncio.run(run())


def test_a_dropped_async_llm_closes_by_itself(letters: Tokenizer, engine: FakeEngine) -> None:
    """No reference cycle through the reader's thread keeps the engine alive."""
    llm = AsyncLLM.from_engine(engine, letters)  # type: ignore[arg-type]
    asyncio.run(last_of(llm, "x"))
    del llm
    gc.collect()
    assert engine.closed
