"""What a request body says about the form of its answer: `response_format` as OpenAI has it, `structured_outputs` and `guided_*` as vLLM does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stoker.server.errors import bad_request
from stoker.server.settings import Limits
from stoker.structured_outputs import StructuredOutputsParams, depth

if TYPE_CHECKING:
    from stoker.server.protocol import Sampling

_GUIDED = ("json", "regex", "choice", "grammar", "json_object", "whitespace_pattern")


def structured_outputs(body: Sampling, limits: Limits) -> StructuredOutputsParams | None:
    """The constraint that a body asks for, if any. 400 for what is unknown, too large or asked for twice."""
    asked: dict[str, dict[str, Any]] = {}
    if body.structured_outputs:
        asked["structured_outputs"] = body.structured_outputs
    guided = {name: value for name in _GUIDED if (value := getattr(body, f"guided_{name}")) is not None}
    if guided:
        asked["guided_" + next(iter(guided))] = guided
    if body.response_format is not None and (wanted := _of_response_format(body.response_format)):
        asked["response_format"] = wanted
    if not asked:
        return None
    if len(asked) > 1:
        raise bad_request(f"{' and '.join(asked)} both say what the answer must look like; give one")
    ((where, fields),) = asked.items()
    _check_size(where, fields, limits)
    try:
        return StructuredOutputsParams.from_any(fields)
    except (ValueError, TypeError) as error:
        raise bad_request(str(error), where) from None


def _of_response_format(given: dict[str, Any]) -> dict[str, Any] | None:
    kind = given.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"json_object": True}
    if kind != "json_schema":
        raise bad_request(
            f"response_format.type is {kind!r}; allowed are text, json_object, json_schema", "response_format"
        )
    # Chat completions nest the schema once more than responses do.
    nested = given.get("json_schema", given)
    schema = nested.get("schema", nested.get("json_schema")) if isinstance(nested, dict) else None
    if not isinstance(schema, (dict, bool)):
        raise bad_request("response_format.json_schema.schema must be a JSON schema", "response_format")
    return {"json": {} if schema is True else schema}


def _check_size(where: str, fields: dict[str, Any], limits: Limits) -> None:
    size = sum(_size_of(value) for value in fields.values())
    if size > limits.max_schema_bytes:
        raise bad_request(f"{where} is larger than the {limits.max_schema_bytes} characters allowed", where)
    deepest = max(depth(value) for value in fields.values())
    if deepest > limits.max_schema_depth:
        raise bad_request(
            f"{where} nests {deepest} levels deep; {limits.max_schema_depth} are allowed", where
        )


def _size_of(value: Any) -> int:
    """Characters of all that a value holds, without writing it down."""
    size, stack = 0, [value]
    while stack:
        item = stack.pop()
        size += len(item) if isinstance(item, str) else 4
        if isinstance(item, dict):
            stack += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple)):
            stack += item
    return size
