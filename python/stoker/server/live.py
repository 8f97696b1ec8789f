"""What the server shows of itself while it runs: how requests stand and why they wait, health, readiness, metrics, versions."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from stoker.server import messages as m
from stoker.server.engine_client import EngineDeadError
from stoker.server.errors import ApiError, bad_request
from stoker.server.state import ServerState

_MAX_LOOKS = 4096


def json_response(value: Any, status: int = 200) -> Response:
    """A JSON response through msgspec."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


async def models(request: Request, state: ServerState) -> Response:
    """GET /v1/models."""
    return json_response(
        {"object": "list", "data": [_card(state, name) for name in state.settings.served_model_names]}
    )


async def model(request: Request, state: ServerState) -> Response:
    """GET /v1/models/{model}."""
    return json_response(_card(state, state.check_model(request.path_params["model"])))


def _card(state: ServerState, name: str) -> dict[str, Any]:
    ready = state.client.ready
    return {
        "id": name,
        "object": "model",
        "created": state.started,
        "owned_by": "stoker",
        "root": ready.model_path if ready else None,
        "parent": None,
        "max_model_len": ready.max_model_len if ready else None,
    }


async def requests(request: Request, state: ServerState) -> Response:
    """GET /v1/requests: those that run, then the queue in its order (at most `limit` of it), each with why it waits."""
    text = request.query_params.get("limit", "256")
    if not text.isdecimal() or len(text) > 6 or int(text) > _MAX_LOOKS:
        raise bad_request(f"limit={text!r}: 0 to {_MAX_LOOKS} are allowed", "limit")
    answer = await _looks(state, max_waiting=int(text))
    data = [_shown(look) for look in answer.looks or ()]
    return json_response({"object": "list", "data": data, "engine": answer.values})


async def one_request(request: Request, state: ServerState) -> Response:
    """GET /v1/requests/{id}: how one request stands; all its answers where n > 1."""
    rid, looks = await _open_request(request, state)
    return json_response({"id": rid, "object": "request", "answers": [_shown(look) for look in looks]})


async def end_request(request: Request, state: ServerState) -> Response:
    """DELETE /v1/requests/{id}: ends a request, whoever asked for it; its answers end with "abort"."""
    rid, _ = await _open_request(request, state)
    state.client.abort_any(rid)
    return json_response({"id": rid, "object": "request", "deleted": True})


async def _open_request(request: Request, state: ServerState) -> tuple[str, list[m.Look]]:
    rid = request.path_params["rid"]
    answer = await _looks(state, rid=rid)
    if not answer.looks:
        raise ApiError(
            404, f"no request {rid!r} is open; it has ended, or never was", code="request_not_found"
        )
    return rid, answer.looks


async def _looks(state: ServerState, **question: Any) -> m.Looks:
    try:
        answer = await state.client.looks(**question)
    except EngineDeadError as error:
        raise ApiError(503, str(error), retry_after=1) from None
    except asyncio.TimeoutError:
        raise ApiError(503, "the engine does not answer", retry_after=1) from None
    if answer.looks is None:
        raise ApiError(503, "the engine's step takes too long to tell; try again", retry_after=1)
    return answer


def _shown(look: m.Look) -> dict[str, Any]:
    waits = None
    if look.wait_code != "none":
        numbers = {"needed": look.needed, "free": look.free, "evictable": look.evictable}
        waits = {"code": look.wait_code, "message": look.wait, **numbers}
    return {
        "id": look.rid,
        "user": look.tenant or None,
        "state": "prefilling" if look.prefilling else "decoding" if look.state == "running" else look.state,
        "waits_for": waits,
        "place": look.place if look.place >= 0 else None,
        "priority": look.priority,
        "prompt_tokens": look.prompt_len,
        "cached_tokens": look.cached_tokens,
        "computed_tokens": look.computed,
        "output_tokens": look.num_outputs,
        "max_tokens": max(0, look.length_limit - look.prompt_len),
        "kv_blocks": look.num_blocks,
        "preemptions": {"retract": look.retractions, "swap": look.swaps},
        "steps": {"prefill": look.prefill_steps, "decode": look.decode_steps},
        "age": look.age,
        "queue_time": look.queue_time,
        "time_to_first_token": look.time_to_first_token,
    }


async def health(request: Request, state: ServerState) -> Response:
    """GET /health: this process answers."""
    return json_response({"status": "ok"})


async def ready(request: Request, state: ServerState) -> Response:
    """GET /ready: the model is loaded and the loop moves."""
    if state.draining:
        raise ApiError(503, "the server is shutting down", retry_after=5)
    _ = state.tokenizer
    try:
        stats = await state.client.stats()
    except EngineDeadError as error:
        raise ApiError(503, str(error), retry_after=1) from None
    except asyncio.TimeoutError:
        raise ApiError(503, "the engine does not answer", retry_after=1) from None
    if stats.loop_age > state.settings.stall_timeout:
        raise ApiError(
            503, f"the engine has requests and took no step for {stats.loop_age:.0f} s", retry_after=5
        )
    return json_response({"status": "ready", "engine": stats.values, "loop_age": stats.loop_age})


async def version(request: Request, state: ServerState) -> Response:
    """GET /version."""
    from stoker import __version__

    return json_response({"version": __version__})


async def metrics(request: Request, state: ServerState) -> Response:
    """GET /metrics, for Prometheus."""
    try:
        stats = await state.client.stats()
    except (EngineDeadError, asyncio.TimeoutError):
        stats = None
    return Response(state.metrics.page(stats), media_type="text/plain; version=0.0.4; charset=utf-8")
