"""Stored responses of /v1/responses: in this worker's memory, the newest so many, for `previous_response_id` and to be read again."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from stoker.server.errors import ApiError, bad_request

Items = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Stored:
    """A response, and the conversation up to and with it as the items that `input` takes."""

    response: dict[str, Any]
    items: Items


class ResponseStore:
    """At most `limit` responses; the oldest goes first. 0: nothing is stored, and asking for it is a 400."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._stored: OrderedDict[str, Stored] = OrderedDict()

    def items_before(self, previous: str | None) -> Items:
        """The conversation that a response goes on from; empty without one."""
        if previous is None:
            return []
        if not self.limit:
            raise bad_request(
                "previous_response_id: responses are not stored here (--store-responses N does); send the whole "
                "conversation in input",
                "previous_response_id",
            )
        return self.get(previous).items

    def get(self, rid: str) -> Stored:
        """404 where it is not there, or not any more."""
        found = self._stored.get(rid)
        if found is None:
            raise ApiError(404, f"no response {rid!r} is stored here; at most the newest {self.limit} are")
        return found

    def put(self, rid: str, stored: Stored) -> None:
        """Keeps it, if anything is kept."""
        self._stored[rid] = stored
        while len(self._stored) > self.limit:
            self._stored.popitem(last=False)

    def answer(self, request: Request) -> Response:
        """GET and DELETE /v1/responses/{id}."""
        rid = request.path_params["rid"]
        shown: dict[str, Any] = self.get(rid).response
        if request.method == "DELETE":
            del self._stored[rid]
            shown = {"id": rid, "object": "response", "deleted": True}
        return Response(msgspec.json.encode(shown), media_type="application/json")
