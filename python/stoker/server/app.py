"""The HTTP application of one worker: routes and errors. Each endpoint's work is in a file of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.responses import Response

from stoker.server.anthropic import create_message
from stoker.server.body import read
from stoker.server.chat import checked_messages, create_chat_completion
from stoker.server.completions import create_completion
from stoker.server.engine_client import EngineDeadError
from stoker.server.errors import ApiError, bad_request
from stoker.server.guard import Guard
from stoker.server.protocol import DetokenizeRequest, TokenizeRequest
from stoker.server.responses import create_response
from stoker.server.state import ServerState

log = logging.getLogger("stoker.server")

Endpoint = Callable[[Request, ServerState], Awaitable[Response]]


def json_response(value: Any, status: int = 200) -> Response:
    """A JSON response through msgspec."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def build_app(state: ServerState) -> FastAPI:
    """The application; its lifespan connects to the engine and says goodbye to it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await state.client.start()
        loading = asyncio.create_task(state.prepare())
        yield
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        await state.client.close()

    app = FastAPI(title="Stoker", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, state=state)
    _add_errors(app)

    def post(path: str, endpoint: Endpoint) -> None:
        async def handler(request: Request) -> Response:
            return await endpoint(request, state)

        app.add_api_route(path, handler, methods=["POST"], name=path)

    def get(path: str, endpoint: Endpoint) -> None:
        async def handler(request: Request) -> Response:
            return await endpoint(request, state)

        app.add_api_route(path, handler, methods=["GET"], name=path)

    post("/v1/completions", create_completion)
    post("/v1/chat/completions", create_chat_completion)
    post("/v1/responses", create_response)
    post("/v1/messages", create_message)
    post("/v1/embeddings", embeddings)
    post("/tokenize", tokenize)
    post("/detokenize", detokenize)
    get("/v1/models", models)
    get("/health", health)
    get("/ready", ready)
    get("/version", version)
    get("/metrics", metrics)
    return app


def _add_errors(app: FastAPI) -> None:
    """The one shape of errors, whatever raised them."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(404)
    async def not_found(request: Request, error: Exception) -> Response:
        return ApiError(404, f"there is no {request.url.path} here").response()

    @app.exception_handler(405)
    async def not_allowed(request: Request, error: Exception) -> Response:
        return ApiError(405, f"{request.method} is not allowed for {request.url.path}").response()

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        log.exception("a request failed")
        return ApiError(500, "internal error; the server's log has the details").response()


async def models(request: Request, state: ServerState) -> Response:
    """GET /v1/models."""
    limit = state.client.ready.max_model_len if state.client.ready else None
    cards = [
        {"id": name, "object": "model", "created": 0, "owned_by": "stoker", "max_model_len": limit}
        for name in state.settings.served_model_names
    ]
    return json_response({"object": "list", "data": cards})


async def embeddings(request: Request, state: ServerState) -> Response:
    """POST /v1/embeddings: none of the models served here makes embeddings."""
    raise bad_request("this model generates text; it makes no embeddings")


async def tokenize(request: Request, state: ServerState) -> Response:
    """POST /tokenize."""
    body = await read(request, TokenizeRequest, state.settings.limits)
    state.check_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise bad_request("give either prompt or messages")
    if body.messages is not None:
        messages = checked_messages(body.messages, state)
        text = state.template.render(messages, add_generation_prompt=body.add_generation_prompt)
        tokens = await state.encode(text, add_special_tokens=False)
    else:
        tokens = await state.encode(body.prompt or "", add_special_tokens=body.add_special_tokens)
    answer: dict[str, Any] = {"count": len(tokens), "max_model_len": state.max_model_len, "tokens": tokens}
    if body.return_token_strs:
        answer["token_strs"] = [state.tokenizer.token_text(token) for token in tokens]
    return json_response(answer)


async def detokenize(request: Request, state: ServerState) -> Response:
    """POST /detokenize."""
    body = await read(request, DetokenizeRequest, state.settings.limits)
    state.check_model(body.model)
    vocab = state.client.ready.vocab_size if state.client.ready else 0
    wrong = next((token for token in body.tokens if not 0 <= token < vocab), None)
    if wrong is not None:
        raise bad_request(f"token id {wrong} is outside the vocabulary of {vocab}", "tokens")
    return json_response({"prompt": state.tokenizer.decode(body.tokens, skip_special_tokens=False)})


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
