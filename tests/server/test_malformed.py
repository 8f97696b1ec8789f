"""Malformed requests: every one is answered with a 4xx, and a good request beside them gets the same tokens as without them."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest

from stoker.text import Tokenizer
from support.served_engine import expected_token
from support.server_process import CHECKPOINT, RunningServer, start_server, stop_server

LONG = os.environ.get("STOKER_LONG") == "1"
COUNT = 10_000 if LONG else 700
GOOD = {"prompt": [90, 91], "max_tokens": 250, "stream": True}

MESSAGES = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "hello", "max_tokens": 3},
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 3},
    "/v1/responses": {"input": "hello", "max_output_tokens": 3},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 3},
    "/v1/messages/count_tokens": {"messages": MESSAGES},
    "/v1/embeddings": {"input": "hello"},
    "/tokenize": {"prompt": "hello"},
    "/detokenize": {"tokens": [1, 2]},
}
SAMPLED = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages")
# Each is wrong for every endpoint that samples.
WRONG: list[tuple[str, Any]] = [
    ("temperature", -0.5),
    ("temperature", "hot"),
    ("temperature", float("inf")),
    ("top_p", 0),
    ("top_p", 1.5),
    ("top_k", -7),
    ("top_k", 2**70),
    ("min_p", 2),
    ("n", 0),
    ("n", -3),
    ("n", 10**6),
    ("n", 1.5),
    ("seed", "x"),
    ("seed", 10**40),
    ("stop", 5),
    ("stop", [1]),
    ("stop", ["x" * 5000]),
    ("stop", ["x"] * 400),
    ("stop_token_ids", [-1]),
    ("stop_token_ids", [10**9]),
    ("stop_token_ids", "a"),
    ("presence_penalty", 99),
    ("frequency_penalty", "a"),
    ("repetition_penalty", 0),
    ("logit_bias", {"-1": 1}),
    ("logit_bias", {"x": 1}),
    ("logit_bias", {"1" * 30: 1}),
    ("logit_bias", {"5": "a"}),
    ("logit_bias", {str(i): 1 for i in range(2000)}),
    ("min_tokens", -1),
    ("min_tokens", 2**80),
    ("stop_token_ids", [2**80]),
    ("truncate_prompt_tokens", -(2**80)),
    ("presence_penalty", 2**80),
    ("logit_bias", {"5": 10**400}),
    ("stream", "yes"),
    ("stream_options", []),
    ("prompt_logprobs", -2),
    ("prompt_logprobs", 10**5),
    ("user", 5),
    ("priority", "first"),
    ("priority", 2**80),
    ("cache_salt", {}),
    ("use_beam_search", True),
    ("allowed_token_ids", []),
    ("bad_words", [""]),
    ("truncate_prompt_tokens", 0),
    ("model", "another"),
    ("model", 7),
    ("request_id", []),
]
JUNK: list[Any] = [None, True, 0, -1, 1e300, 10**30, "", "x", [], [[]], {}, {"a": 1}, [None], [-1], ["x", 1]]


def malformed(random_: random.Random) -> tuple[str, bytes]:
    """A path and a body that no server may take."""
    path = random_.choice(list(BODIES))
    body = dict(BODIES[path])
    good = json.dumps(body).encode()
    kind = random_.randrange(8)
    if kind == 0:  # cut off, or with bytes that do not belong there
        cut = random_.randrange(len(good))
        return path, good[:cut] + random_.choice([b"", b"]", b"\x00", b"}}}", b"//", b"'"])
    if kind == 1:  # broken UTF-8 in a string
        at = good.index(b":") + 3
        return path, good[:at] + random_.choice([b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xf8\x88"]) + good[
            at:
        ]
    if kind == 2:  # deep nesting
        depth = random_.choice([70, 1000, 50_000])
        opening, closing = random_.choice([(b"[", b"]"), (b'{"a":', b"}")])
        inside = opening * depth + b"1" + closing * depth * random_.randrange(2)
        return path, good[:-1] + b', "metadata": ' + inside + b"}"
    if kind == 3:  # not an object
        return path, json.dumps(random_.choice([one for one in JUNK if not isinstance(one, dict)])).encode()
    if kind == 4:  # a required field is missing or of a wrong type
        name = next(iter(body))
        if path == "/tokenize" or random_.random() < 0.3:
            del body[name]
        else:
            body[name] = random_.choice([None, True, -1, 1e300, 10**30, {}, {"a": 1}, [None], [[None]], [{}]])
        return path, json.dumps(body).encode()
    if kind == 5:  # random bytes
        return path, random_.randbytes(random_.randrange(1, 300))
    path = random_.choice(SAMPLED)
    name, value = random_.choice(WRONG)
    return path, json.dumps({**BODIES[path], name: value}).encode()


async def post(port: int, path: str, body: bytes) -> tuple[int, bytes]:
    """Status and body of one answer, on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        answer = await asyncio.wait_for(reader.read(), 60)
    finally:
        writer.close()
    return int(answer.split(b" ", 2)[1]), answer


def text_of(stream: bytes) -> str:
    lines = [line[6:] for line in stream.splitlines() if line.startswith(b"data: {")]
    return "".join(choice["text"] for line in lines for choice in json.loads(line)["choices"])


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that gives a body one second."""
    running = start_server(
        tmp_path_factory.mktemp("patient"), limits={"body_timeout": 1.0}, embeddings="last", access_log=False
    )
    yield running
    stop_server(running)
    log = running.log.read_text()
    assert "Traceback" not in log, log[-4000:]


@pytest.mark.timeout(900)
def test_malformed_requests_get_4xx_and_harm_nobody(patient: RunningServer) -> None:
    """Thousands of them, of every kind, beside good ones."""
    port = int(patient.url.rsplit(":", 1)[1])
    tokenizer = Tokenizer.from_folder(CHECKPOINT)
    wanted = tokenizer.decode([expected_token(GOOD["prompt"], 0, k) for k in range(GOOD["max_tokens"])])
    random_ = random.Random(1)
    wrong: list[tuple[int, str, bytes]] = []

    async def attack(requests: list[tuple[str, bytes]]) -> None:
        for path, body in requests:
            status, answer = await post(port, path, body)
            if not 400 <= status < 500 or b'"error"' not in answer:
                wrong.append((status, path, body[:200]))

    async def dawdle() -> int:
        """Half a body, and then nothing."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b'POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{"prompt": ')
        answer = await asyncio.wait_for(reader.read(4096), 30)
        writer.close()
        return int(answer.split(b" ", 2)[1])

    async def everything() -> tuple[list[str], list[int]]:
        all_ = [malformed(random_) for _ in range(COUNT)]
        attackers = [asyncio.create_task(attack(all_[i::8])) for i in range(8)]
        slow = [asyncio.create_task(dawdle()) for _ in range(20)]
        texts = []
        while not all(task.done() for task in attackers):
            texts.append(text_of((await post(port, "/v1/completions", json.dumps(GOOD).encode()))[1]))
        await asyncio.gather(*attackers)
        return texts, list(await asyncio.gather(*slow))

    texts, slow = asyncio.run(everything())
    assert wrong == []
    assert texts
    assert set(texts) == {wanted}
    assert set(slow) == {408}
