"""GET /openapi.json: the API's description. Bodies come from the structs that decode them; answers are described here."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from stoker.server.anthropic import CountTokensRequest, MessagesRequest
from stoker.server.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingsRequest,
    TokenizeRequest,
)
from stoker.server.responses import ResponsesRequest
from stoker.server.state import ServerState

Schema = dict[str, Any]

_BODIES: dict[str, type[msgspec.Struct]] = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": CountTokensRequest,
    "/v1/embeddings": EmbeddingsRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
_STREAMS = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages")


async def describe(request: Request, state: ServerState) -> Response:
    """The endpoint."""
    return Response(msgspec.json.encode(document()), media_type="application/json")


def _object(required: Schema, optional: Schema | None = None) -> Schema:
    return {"type": "object", "required": list(required), "properties": {**required, **(optional or {})}}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


_TEXT: Schema = {"type": "string"}
_INT: Schema = {"type": "integer"}
_NUMBER: Schema = {"type": "number"}
_ANY: Schema = {}
_COUNTS: Schema = {"type": "object", "additionalProperties": _NUMBER}
_FINISH: Schema = {"enum": ["stop", "length", "tool_calls", "abort", "error"]}
_USAGE = _object(
    {
        "prompt_tokens": _INT,
        "completion_tokens": _INT,
        "total_tokens": _INT,
        "prompt_tokens_details": _object({"cached_tokens": _INT}),
    }
)
_CALL = _object(
    {"id": _TEXT, "type": {"const": "function"}, "function": _object({"name": _TEXT, "arguments": _TEXT})}
)
_COMPLETION_LOGPROBS = _object(
    {
        "tokens": _list(_TEXT),
        "token_logprobs": _list(_or_null(_NUMBER)),
        "top_logprobs": _list(_or_null(_COUNTS)),
        "text_offset": _list(_INT),
    }
)
_CHAT_LOGPROBS = _object(
    {
        "content": _list(
            _object({"token": _TEXT, "logprob": _NUMBER, "bytes": _list(_INT), "top_logprobs": _list(_ANY)})
        )
    }
)
_REQUEST = _object(
    {
        "id": _TEXT,
        "state": {
            "enum": [
                "waiting",
                "prefilling",
                "decoding",
                "retracted",
                "swapping_out",
                "swapped",
                "swapping_in",
            ]
        },
        "user": _or_null(_TEXT),
        "waits_for": _or_null(
            _object({"code": _TEXT, "message": _TEXT, "needed": _INT, "free": _INT, "evictable": _INT})
        ),
        "place": _or_null(_INT),
        "prompt_tokens": _INT,
        "computed_tokens": _INT,
        "output_tokens": _INT,
        "max_tokens": _INT,
        "kv_blocks": _INT,
        "age": _NUMBER,
    }
)
_MODEL = _object({"id": _TEXT, "object": {"const": "model"}, "created": _INT, "owned_by": _TEXT})

_ANSWERS: dict[str, Schema] = {
    "/v1/completions": _object(
        {
            "id": _TEXT,
            "object": {"const": "text_completion"},
            "created": _INT,
            "model": _TEXT,
            "choices": _list(
                _object(
                    {
                        "index": _INT,
                        "text": _TEXT,
                        "logprobs": _or_null(_COMPLETION_LOGPROBS),
                        "finish_reason": _FINISH,
                        "stop_reason": {"type": ["string", "integer", "null"]},
                    }
                )
            ),
            "usage": _USAGE,
        }
    ),
    "/v1/chat/completions": _object(
        {
            "id": _TEXT,
            "object": {"const": "chat.completion"},
            "created": _INT,
            "model": _TEXT,
            "choices": _list(
                _object(
                    {
                        "index": _INT,
                        "message": _object(
                            {"role": {"const": "assistant"}, "content": _or_null(_TEXT)},
                            {"reasoning_content": _TEXT, "reasoning": _TEXT, "tool_calls": _list(_CALL)},
                        ),
                        "logprobs": _or_null(_CHAT_LOGPROBS),
                        "finish_reason": _FINISH,
                    }
                )
            ),
            "usage": _USAGE,
        }
    ),
    "/v1/responses": _object(
        {
            "id": _TEXT,
            "object": {"const": "response"},
            "created_at": _INT,
            "status": {"enum": ["completed", "incomplete"]},
            "model": _TEXT,
            "output": _list(
                _object({"type": {"enum": ["message", "reasoning", "function_call"]}, "id": _TEXT})
            ),
            "usage": _object({"input_tokens": _INT, "output_tokens": _INT, "total_tokens": _INT}),
            "incomplete_details": _or_null(_object({"reason": _TEXT})),
        }
    ),
    "/v1/messages": _object(
        {
            "id": _TEXT,
            "type": {"const": "message"},
            "role": {"const": "assistant"},
            "model": _TEXT,
            "content": _list(_object({"type": {"enum": ["text", "thinking", "tool_use"]}})),
            "stop_reason": {"enum": ["end_turn", "max_tokens", "stop_sequence", "tool_use"]},
            "stop_sequence": _or_null(_TEXT),
            "usage": _object({"input_tokens": _INT, "output_tokens": _INT}),
        }
    ),
    "/v1/messages/count_tokens": _object({"input_tokens": _INT}),
    "/v1/embeddings": _object(
        {
            "object": {"const": "list"},
            "model": _TEXT,
            "data": _list(_object({"index": _INT, "embedding": {"anyOf": [_list(_NUMBER), _TEXT]}})),
            "usage": _object({"prompt_tokens": _INT, "total_tokens": _INT}),
        }
    ),
    "/tokenize": _object(
        {"count": _INT, "max_model_len": _INT, "tokens": _list(_INT)}, {"token_strs": _list(_TEXT)}
    ),
    "/detokenize": _object({"prompt": _TEXT}),
    "/v1/models": _object({"object": {"const": "list"}, "data": _list(_MODEL)}),
    "/v1/models/{model}": _MODEL,
    "/v1/requests": _object({"object": {"const": "list"}, "data": _list(_REQUEST), "engine": _COUNTS}),
    "/v1/requests/{rid}": _object({"id": _TEXT, "object": {"const": "request"}, "answers": _list(_REQUEST)}),
    "/health": _object({"status": {"const": "ok"}}),
    "/ready": _object({"status": {"const": "ready"}, "engine": _COUNTS, "loop_age": _NUMBER}),
    "/version": _object({"version": _TEXT}),
    "/openapi.json": {"type": "object"},
}
_ANSWERS["/v1/responses/{rid}"] = _ANSWERS["/v1/responses"]
_DELETED = _object({"id": _TEXT, "object": _TEXT, "deleted": {"const": True}})
_RID: Schema = {
    "name": "rid",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "minLength": 1},
}
_QUERIES: dict[str, list[Schema]] = {
    "/v1/responses/{rid}": [_RID],
    "/v1/requests": [
        {
            "name": "limit",
            "in": "query",
            "schema": {"type": "integer", "minimum": 0, "maximum": 4096, "default": 256},
        }
    ],
    "/v1/requests/{rid}": [_RID],
    "/v1/models/{model}": [
        {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    ],
}
_OPEN = ("/health", "/ready", "/version", "/")

_ERROR = _object(
    {"error": _object({"message": _TEXT, "type": _TEXT, "param": _or_null(_TEXT), "code": _or_null(_TEXT)})}
)
_ANTHROPIC_ERROR = _object({"type": {"const": "error"}, "error": _object({"type": _TEXT, "message": _TEXT})})
_WHY = {
    "400": "What was given is not allowed; the message says what is.",
    "401": "A valid API key is needed.",
    "404": "There is no such model, request or path.",
    "405": "Another method is allowed.",
    "408": "The body came too slowly.",
    "413": "The body is too large.",
    "500": "The request failed in the engine.",
    "503": "The model is loading, the queue is full, or the server is draining; Retry-After says when to try again.",
    "504": "The request took longer than --request-timeout.",
}


@lru_cache(maxsize=1)
def document() -> Schema:
    """The OpenAPI document."""
    from stoker import __version__

    structs = [*_BODIES.values()]
    bodies, components = msgspec.json.schema_components(structs, ref_template="#/components/schemas/{name}")
    paths: dict[str, Schema] = {}
    for (path, struct), schema in zip(_BODIES.items(), bodies, strict=True):
        content = {"application/json": {"schema": schema}}
        operation = _operation(
            path, struct.__doc__ or "", _ANSWERS[path], ("400", "404", "408", "413", "500", "503", "504")
        )
        operation["requestBody"] = {"required": True, "content": content}
        paths[path] = {"post": operation}
    for path, answer in _ANSWERS.items():
        if path not in _BODIES:
            codes = ("503",) if path in ("/ready",) else ("400", "404", "503")
            paths[path] = {"get": _operation(path, "", answer, codes)}
            if path in _QUERIES:
                paths[path]["get"]["parameters"] = _QUERIES[path]
    for path in ("/v1/responses/{rid}", "/v1/requests/{rid}"):
        delete = _operation(path, "", _DELETED, ("400", "404", "503"))
        paths[path]["delete"] = {**delete, "parameters": [_RID]}
    for path, kind in (("/metrics", "text/plain"), ("/", "text/html")):
        found = {"description": "OK", "content": {kind: {"schema": _TEXT}}}
        paths[path] = {"get": {"responses": {"200": found, **_errors(path, ("400",))}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Stoker", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _operation(path: str, text: str, answer: Schema, codes: tuple[str, ...]) -> Schema:
    content: Schema = {"application/json": {"schema": answer}}
    if path in _STREAMS:
        content["text/event-stream"] = {"schema": _object({"data": _TEXT}, {"event": _TEXT})}
    responses = {"200": {"description": "OK", "content": content}, **_errors(path, codes)}
    operation: Schema = {"summary": text.strip().rstrip("."), "responses": responses}
    if path in _OPEN:
        operation["security"] = [{}]
    return operation


def _errors(path: str, codes: tuple[str, ...]) -> Schema:
    schema = _ANTHROPIC_ERROR if path.startswith("/v1/messages") else _ERROR
    content = {"application/json": {"schema": schema}}
    return {code: {"description": _WHY[code], "content": content} for code in ("401", "405", *codes)}
