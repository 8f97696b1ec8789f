"""Around every request: keys, request ids, the access log, and counts by path and status. Plain ASGI, so that a stream passes untouched."""

from __future__ import annotations

import hmac
import logging
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stoker.server.answers import Answers
from stoker.server.anthropic import error_body
from stoker.server.errors import ApiError
from stoker.server.state import REQUEST_ID, ServerState

log = logging.getLogger("stoker.server")
_OPEN_PATHS = frozenset({"/health", "/ready", "/version", "/"})
# Asked again and again by probes and pages: counted, not logged.
_QUIET_PATHS = frozenset({"/health", "/ready", "/metrics", "/v1/requests"})


def _printable(path: str) -> str:
    return path if path.isascii() and path.isprintable() else ascii(path)


class Guard:
    """Middleware. Leaves `request.state.request_id` (the client's, or None) and `request.state.jobs` (a list that takes the
    Answers made for the request) for the endpoints."""

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app = app
        self._state = state
        self._keys = [key.encode() for key in state.settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id")
        request_id = given if given and REQUEST_ID.fullmatch(given) else None
        jobs: list[Answers] = []
        scope.setdefault("state", {}).update(request_id=request_id, jobs=jobs)
        began = time.monotonic()
        status = 500

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if request_id or jobs:
                    MutableHeaders(scope=message)["X-Request-Id"] = request_id or jobs[0].rid
            await send(message)

        try:
            if self._allowed(scope["path"], headers):
                await self._app(scope, receive, send_on)
            else:
                error = ApiError(
                    401, "a valid API key is needed (Authorization: Bearer KEY)", code="invalid_api_key"
                )
                body = error_body(error) if scope["path"].startswith("/v1/messages") else None
                await error.response(body)(scope, receive, send_on)
        finally:
            for job in jobs:  # mostly closed; but no failure between may leave one running for nobody
                job.close()
            path = scope["state"].get("route", "other")
            self._state.metrics.http_requests.labels(path, str(status)).inc()
            if self._state.settings.access_log and path not in _QUIET_PATHS:
                took = (time.monotonic() - began) * 1e3
                account = "; ".join(job.account() for job in jobs)
                log.info(
                    "%s %s %d %.1f ms %s", scope["method"], _printable(scope["path"]), status, took, account
                )
            if self._state.traces.on and path not in _QUIET_PATHS:
                self._state.traces.request(f"{scope['method']} {path}", status, began, dict(headers), jobs)

    def _allowed(self, path: str, headers: Headers) -> bool:
        if not self._keys or path in _OPEN_PATHS:
            return True
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = (token if scheme.lower() == "bearer" else headers.get("x-api-key", "")).strip().encode()
        # Every key is compared, so that the time tells nothing.
        return any([hmac.compare_digest(given, key) for key in self._keys])  # noqa: C419
