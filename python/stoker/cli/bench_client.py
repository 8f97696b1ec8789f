"""The load generator's HTTP client: one POST, its answer as server-sent events with the time of each. Counts raw frames and costs little."""

from __future__ import annotations

import asyncio
import itertools
import json
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


class HttpError(Exception):
    """The endpoint did not answer as asked; says what it said."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to send requests. `url` is the API's base, as OpenAI's clients take it (`http://host:port/v1`, or without /v1)."""

    url: str
    path: str
    api_key: str | None = None

    @property
    def address(self) -> tuple[str, int, bool]:
        """Host, port, and whether it is TLS. ValueError for what is no URL."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{self.url!r} is no URL; http://HOST:PORT is expected")
        tls = parts.scheme == "https"
        return parts.hostname, parts.port or (443 if tls else 80), tls

    def head(self, method: str, path: str, length: int) -> bytes:
        """Request line and headers."""
        host, port, _ = self.address
        base = urlsplit(self.url).path.rstrip("/").removesuffix("/v1")
        lines = [f"{method} {base}{path} HTTP/1.1", f"Host: {host}:{port}", "Connection: close"]
        if length:
            lines += ["Content-Type: application/json", f"Content-Length: {length}"]
        if self.api_key:
            lines.append(f"Authorization: Bearer {self.api_key}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


@dataclass(slots=True)
class Answer:
    """What one request came to. Times are seconds on time.perf_counter()'s clock."""

    started: float = 0.0
    ended: float = 0.0
    frames: list[float] = field(default_factory=list)
    """When each frame with tokens came."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None

    @property
    def ttft(self) -> float:
        return self.frames[0] - self.started

    @property
    def e2e(self) -> float:
        return self.frames[-1] - self.started

    @property
    def gaps(self) -> list[float]:
        return [b - a for a, b in itertools.pairwise(self.frames)]


async def get_json(endpoint: Endpoint, path: str) -> Any:
    """GET of something small."""
    reader, writer = await _connect(endpoint)
    try:
        writer.write(endpoint.head("GET", path, 0))
        status, chunked = await _answer_head(reader)
        body = b"".join([part async for part in _body(reader, chunked)])
        if status != 200:
            raise HttpError(f"GET {path}: HTTP {status}: {body[:200].decode('utf-8', 'replace')}")
        return json.loads(body)
    finally:
        writer.close()


async def ask(endpoint: Endpoint, body: bytes, answer: Answer) -> None:
    """POSTs `body` (a streaming request) and fills `answer` as the frames come; what goes wrong is its `error`."""
    writer = None
    answer.started = time.perf_counter()
    try:
        reader, writer = await _connect(endpoint)
        writer.write(endpoint.head("POST", endpoint.path, len(body)) + body)
        status, chunked = await _answer_head(reader)
        if status != 200:
            text = b"".join([part async for part in _body(reader, chunked)])
            answer.error = f"HTTP {status}: {text[:200].decode('utf-8', 'replace')}"
            return
        await _read_events(reader, chunked, answer)
    except (OSError, EOFError, ValueError, asyncio.IncompleteReadError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    finally:
        answer.ended = time.perf_counter()
        if writer is not None:
            writer.close()


async def _read_events(reader: asyncio.StreamReader, chunked: bool, answer: Answer) -> None:
    rest = b""
    done = False
    async for part in _body(reader, chunked):
        now = time.perf_counter()
        *frames, rest = (rest + part).split(b"\n\n")
        for frame in frames:
            data = frame.removeprefix(b"data: ")
            if data == b"[DONE]":
                done = True
            elif b'"error"' in data and b'"choices"' not in data:
                answer.error = data[:200].decode("utf-8", "replace")
            elif b'"choices":[]' in data or b'"usage":{' in data:
                usage = json.loads(data).get("usage") or {}
                answer.prompt_tokens = usage.get("prompt_tokens", 0)
                answer.output_tokens = usage.get("completion_tokens", 0)
            elif data.startswith(b"{") and b'"role":' not in data:
                answer.frames.append(now)
    if not done and answer.error is None:
        answer.error = "the stream ended without [DONE]"
    if not answer.frames and answer.error is None:
        answer.error = "no tokens came"
    answer.output_tokens = answer.output_tokens or len(answer.frames)


async def _connect(endpoint: Endpoint) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port, tls = endpoint.address
    context = ssl.create_default_context() if tls else None
    return await asyncio.open_connection(host, port, ssl=context, limit=1 << 20)


async def _answer_head(reader: asyncio.StreamReader) -> tuple[int, bool]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    try:
        status = int(head.split(" ", 2)[1])
    except (IndexError, ValueError):
        raise ValueError(f"no HTTP answer: {head[:80]!r}") from None
    return status, "transfer-encoding: chunked" in head


async def _body(reader: asyncio.StreamReader, chunked: bool) -> AsyncIterator[bytes]:
    """The body's parts as they come; a chunked one is taken out of its chunks."""
    if not chunked:
        while part := await reader.read(1 << 16):
            yield part
        return
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)
