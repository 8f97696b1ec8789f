"""Reads a request's body within the server's limits and turns it into a typed object; what does not fit is a 4xx that says why."""

from __future__ import annotations

import asyncio
import re
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request

from stoker.server.errors import ApiError, bad_request
from stoker.server.settings import Limits

T = TypeVar("T")

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_INNERMOST = re.compile(rb"\[\]|\{\}")
_ALL_BUT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


async def read_body(request: Request, limits: Limits) -> bytes:
    """The raw body. 413 over the size limit (also without Content-Length), 408 when it comes too slowly."""
    length = request.headers.get("content-length")
    if length is not None and length.isdigit() and int(length) > limits.max_body_bytes:
        raise ApiError(413, f"the body has {length} bytes; at most {limits.max_body_bytes} are allowed")
    try:
        return await asyncio.wait_for(_collect(request, limits), limits.body_timeout)
    except asyncio.TimeoutError:
        raise ApiError(408, f"the body did not come within {limits.body_timeout:g} s") from None


async def _collect(request: Request, limits: Limits) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limits.max_body_bytes:
            raise ApiError(413, f"the body is larger than the {limits.max_body_bytes} bytes allowed")
        chunks.append(chunk)
    return b"".join(chunks)


def nests_deeper(data: bytes, limit: int) -> bool:
    """Whether brackets nest deeper than `limit` in a JSON text, strings left out. Few passes over the text, no recursion."""
    brackets = _STRING.sub(b"", data).translate(None, _ALL_BUT_BRACKETS)
    for _ in range(limit):
        left = _INNERMOST.sub(b"", brackets)
        if len(left) == len(brackets):
            break
        brackets = left
    else:
        return bool(brackets)
    # What is left does not match, so it is no JSON; the decoder says so, unless that would take it too deep.
    return brackets.count(b"[") + brackets.count(b"{") > limit


def decode(data: bytes, kind: type[T], limits: Limits) -> T:
    """The body as `kind` (a msgspec Struct; unknown fields are ignored, as OpenAI's API does). 400 with the field's path."""
    # Few brackets cannot nest deeply; only bodies with many are looked at.
    if data.count(b"[") + data.count(b"{") > limits.max_json_depth and nests_deeper(
        data, limits.max_json_depth
    ):
        raise bad_request(f"the JSON nests deeper than the {limits.max_json_depth} levels allowed")
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        message = str(error)
        path = message.rsplit("`$.", 1)[-1].rstrip("`") if "`$." in message else None
        raise bad_request(message, path) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise bad_request(f"the body is not JSON: {error}") from None


async def read(request: Request, kind: type[T], limits: Limits) -> T:
    """`read_body`, then `decode`."""
    return decode(await read_body(request, limits), kind, limits)


def plain(value: Any) -> Any:
    """A msgspec object as plain dicts and lists."""
    return msgspec.to_builtins(value)
