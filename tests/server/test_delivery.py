"""From the engine's messages to a client's bytes: nothing is delivered twice, to the wrong one, or never."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from stoker.engine_process import EngineProcess
from stoker.sampling_params import SamplingParams
from stoker.server import messages as m
from stoker.server.answers import Delta
from stoker.server.direct import DirectResponse
from stoker.server.engine_client import EngineClient, RefusedError
from stoker.server.errors import ApiError
from stoker.server.guard import Guard
from stoker.server.settings import ServerSettings
from support.served_engine import FakeEngine, expected_token
from support.server_process import CHECKPOINT, RunningServer

READY = m.Ready(m.PROTOCOL, 100, 2000, [0], "", {}, {})


class Client(EngineClient):
    """One that talks to nobody; what it would have sent is in `sent`."""

    def __init__(self, folder: Path, worker: int = 0) -> None:
        super().__init__(folder, worker)
        self.sent: list[m.ToEngine] = []
        self.ready = READY

    def _send(self, message: m.ToEngine) -> None:
        self.sent.append(message)


def in_loop(work: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(work(), 10)

    asyncio.run(limited())


def test_what_comes_after_a_stop_string_ends_no_other_answer(server: RunningServer) -> None:
    """Two prompts in one stream: the first ends by a stop string, and the engine's word that it was aborted comes later. The
    second is whole all the same."""
    from stoker.text import Tokenizer

    tokenizer = Tokenizer.from_folder(CHECKPOINT)
    texts = [tokenizer.decode([expected_token([p], 0, k) for k in range(60)]) for p in (21, 22)]
    stop = next(texts[0][at : at + 5] for at in range(10, 200) if texts[0][at : at + 5] not in texts[1])
    ask = {"prompt": [[21], [22]], "max_tokens": 60, "stream": True, "stop": [stop]}
    found, ends = ["", ""], [None, None]
    with server.client() as http, http.stream("POST", "/v1/completions", json=ask) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                (choice,) = json.loads(line[6:])["choices"]
                found[choice["index"]] += choice["text"]
                ends[choice["index"]] = choice["finish_reason"]
    assert found == [texts[0][: texts[0].index(stop)], texts[1]]
    assert ends == ["stop", "length"]


@pytest.mark.parametrize("bare", [False, True], ids=["news", "token"])
def test_news_that_cannot_be_delivered_end_their_request(tmp_path: Path, bare: bool) -> None:
    """An exception on the way ends the request with an error, in the engine too; others go on. It hung, or went on with a
    hole in its text."""

    async def work() -> None:
        client = Client(tmp_path)
        broken, sound = (client.submit(rid, [1], SamplingParams()) for rid in ("broken", "sound"))
        told: list[Exception | None] = []
        heard: list[m.News | None] = []

        def sink(news: m.News | None, failure: Exception | None) -> None:
            if news is not None:
                raise KeyError("ours")
            told.append(failure)

        broken.listen(sink)
        sound.listen(lambda news, failure: heard.append(news))
        if bare:
            client._take(m.Step([broken.ticket, sound.ticket], [5, 6], []))
        else:
            client._take(m.Step([], [], [m.News("broken", 0, [5]), m.News("sound", 0, [6])]))
        assert [type(one) for one in told] == [RefusedError]
        assert m.Abort(0, "broken") in client.sent
        assert [one and one.token_ids for one in heard] == [[6]]
        assert client.num_open == 1
        await client.close()

    in_loop(work)


def test_a_worker_started_anew_has_tickets_of_its_own(tmp_path: Path) -> None:
    """Tokens of its predecessor's requests, still on their way, are nobody's."""

    async def work() -> None:
        old, new = Client(tmp_path, 1), Client(tmp_path, 1)
        gone = old.submit("a", [1], SamplingParams())
        here = new.submit("b", [1], SamplingParams())
        heard: list[Any] = []
        here.listen(lambda news, failure: heard.append(news))
        new._take(m.Step([gone.ticket], [5], []))
        assert heard == []
        assert {m.worker_of(one.ticket) for one in (gone, here)} == {1}
        await old.close()
        await new.close()

    in_loop(work)


def test_a_worker_ends_only_its_own_requests(tmp_path: Path) -> None:
    """Request ids may come from clients: one of another worker that was refused, or that left, ends nothing here."""
    engine = FakeEngine(str(CHECKPOINT), tick=0.001)
    process = EngineProcess(engine, tmp_path, {})
    ids = (1).to_bytes(4, "little")
    process._handle(m.Submit(0, "mine", m.first_ticket(0), ids, SamplingParams(max_tokens=5)), {})
    process._handle(m.Abort(1, "mine"), {})
    assert engine.stats().num_running == 1
    process._handle(m.Abort(0, "mine"), {})
    assert engine.stats().num_running == 0
    process._intake.close()
    process._context.term()


def test_no_failure_leaves_a_request_running_for_nobody() -> None:
    """Whatever an endpoint raises between submitting and answering, its requests end."""
    closed = []

    class Job:
        rid = "r"

        def close(self) -> None:
            closed.append(self)

        def account(self) -> str:
            return ""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["jobs"].append(Job())
        raise RuntimeError("ours")

    counter = SimpleNamespace(labels=lambda *_: SimpleNamespace(inc=lambda: None))
    state: Any = SimpleNamespace(
        settings=ServerSettings(),
        metrics=SimpleNamespace(http_requests=counter),
        traces=SimpleNamespace(on=False),
    )
    scope: Any = {"type": "http", "path": "/v1/completions", "method": "POST", "headers": []}
    with pytest.raises(RuntimeError):
        asyncio.run(Guard(app, state)(scope, None, None))  # type: ignore[arg-type]
    assert len(closed) == 1


class Job:
    """Answers that a test makes: `say` is what `listen` is told."""

    ended = (False,)

    def __init__(self) -> None:
        self.closed = False

    def listen(self, take: Callable[[Delta], None], end: Callable[[ApiError | None], None]) -> None:
        self.take, self.end = take, end

    def close(self) -> None:
        self.closed = True


def test_streams_go_through_any_asgi_server() -> None:
    """Without our own connection under it a response sends its frames as ASGI has it: same bytes, job closed."""

    async def work() -> None:
        job, sent = Job(), []
        response = DirectResponse([job], lambda _, delta: delta.text.encode(), first=b"<", last=lambda: b">")  # type: ignore[list-item]

        async def send(message: Any) -> None:
            sent.append(message)
            if message["type"] == "http.response.body" and len(sent) == 2:
                job.take(Delta(0, "b", [2]))
                job.take(Delta(0, "c", [3]))
                job.end(None)

        async def receive() -> Any:
            await asyncio.sleep(60)

        running = asyncio.create_task(response({"type": "http"}, receive, send))
        await asyncio.sleep(0)
        job.take(Delta(0, "a", [1]))
        await running
        assert sent[0]["type"] == "http.response.start"
        assert b"".join(one["body"] for one in sent[1:]) == b"<abc>"
        assert [one["more_body"] for one in sent[1:]] == [True] * (len(sent) - 2) + [False]
        assert job.closed

    in_loop(work)
