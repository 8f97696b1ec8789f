"""Errors as OpenAI's clients expect them: one JSON shape, the right status, and never a traceback for the client."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """Ends a request with `status` and a message for the client."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """The JSON object that OpenAI's API answers with."""
        kind = _TYPES.get(self.status, "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self, body: dict[str, Any] | None = None) -> Response:
        """The HTTP response; `body` where an API has a shape of its own for errors."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return Response(msgspec.json.encode(body or self.body()), self.status, headers, "application/json")


def bad_request(message: str, param: str | None = None) -> ApiError:
    """A 400 that says what was given and what is allowed."""
    return ApiError(400, message, param=param)
