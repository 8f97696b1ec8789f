"""GET /: the page, one static file."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from stoker.server.state import ServerState

# Nothing from outside may be fetched or run, and nobody may put the page into a frame.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@lru_cache(maxsize=1)
def _html() -> bytes:
    return (Path(__file__).parent / "page.html").read_bytes()


async def page(request: Request, state: ServerState) -> Response:
    """The endpoint."""
    headers = {
        "Content-Security-Policy": _POLICY,
        "Cache-Control": "no-cache",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(_html(), media_type="text/html; charset=utf-8", headers=headers)
