"""The HTTP application of one worker: routes and errors. Each endpoint's work is in a file of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stoker.server import live
from stoker.server.anthropic import count_tokens, create_message, error_body
from stoker.server.chat import create_chat_completion
from stoker.server.completions import create_completion
from stoker.server.embeddings import create_embeddings
from stoker.server.errors import ApiError
from stoker.server.guard import Guard
from stoker.server.openapi import describe
from stoker.server.page import page
from stoker.server.responses import create_response, stored_response
from stoker.server.state import ServerState
from stoker.server.tokens import detokenize, tokenize

log = logging.getLogger("stoker.server")

Endpoint = Callable[[Request, ServerState], Awaitable[Response]]

POST: dict[str, Endpoint] = {
    "/v1/completions": create_completion,
    "/v1/chat/completions": create_chat_completion,
    "/v1/responses": create_response,
    "/v1/messages": create_message,
    "/v1/messages/count_tokens": count_tokens,
    "/v1/embeddings": create_embeddings,
    "/tokenize": tokenize,
    "/detokenize": detokenize,
}
DELETE: dict[str, Endpoint] = {
    "/v1/responses/{rid}": stored_response,
    "/v1/requests/{rid:path}": live.end_request,
}
GET: dict[str, Endpoint] = {
    "/v1/responses/{rid}": stored_response,
    "/v1/models": live.models,
    "/v1/models/{model:path}": live.model,
    "/v1/requests": live.requests,
    "/v1/requests/{rid:path}": live.one_request,
    "/health": live.health,
    "/ready": live.ready,
    "/version": live.version,
    "/metrics": live.metrics,
    "/openapi.json": describe,
    "/": page,
}


def build_app(state: ServerState) -> Starlette:
    """The application; its lifespan connects to the engine and says goodbye to it."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await state.client.start()
        loading = asyncio.create_task(state.prepare())
        loading.add_done_callback(_tell_failure)
        yield
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        await state.client.close()
        state.traces.close()

    middleware = [Middleware(Guard, state=state)]
    if state.settings.cors_origins:
        # Outside of the guard: a browser's first question bears no key.
        cors = Middleware(
            CORSMiddleware,
            allow_origins=list(state.settings.cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
        middleware.insert(0, cors)
    routes = [
        Route(path, _handler(path, endpoint, state), methods=[method])
        for method, endpoints in (("POST", POST), ("GET", GET), ("DELETE", DELETE))
        for path, endpoint in endpoints.items()
    ]
    return Starlette(
        routes=routes, middleware=middleware, lifespan=lifespan, exception_handlers=_error_handlers()
    )


def _handler(path: str, endpoint: Endpoint, state: ServerState) -> Callable[[Request], Awaitable[Response]]:
    async def handler(request: Request) -> Response:
        request.state.route = path
        return await endpoint(request, state)

    return handler


def _tell_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("the server cannot get ready", exc_info=task.exception())


def _error_handlers() -> dict[Any, Any]:
    """The one shape of errors, whatever raised them; Anthropic's clients get theirs."""

    def shown(request: Request, error: ApiError) -> Response:
        return error.response(error_body(error) if request.url.path.startswith("/v1/messages") else None)

    async def api_error(request: Request, error: ApiError) -> Response:
        return shown(request, error)

    async def not_found(request: Request, error: Exception) -> Response:
        return shown(request, ApiError(404, f"there is no {request.url.path} here"))

    async def not_allowed(request: Request, error: Exception) -> Response:
        response = shown(request, ApiError(405, f"{request.method} is not allowed for {request.url.path}"))
        response.headers.update(getattr(error, "headers", None) or {})
        return response

    async def broken(request: Request, error: Exception) -> Response:
        log.error("a request failed", exc_info=error)
        return shown(request, ApiError(500, "internal error; the server's log has the details"))

    return {ApiError: api_error, 404: not_found, 405: not_allowed, Exception: broken}
