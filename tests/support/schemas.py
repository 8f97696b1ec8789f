"""Random JSON schemas: scalar ones drawn by hypothesis-jsonschema from a schema of schemas, nested by hypothesis; the same each time."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture.utils import many
from hypothesis_jsonschema import from_schema

from stoker.structured_outputs import StructuredOutputsParams, check_source


def _more(self: Any) -> bool:
    """What hypothesis-jsonschema 0.23 still calls and newer hypothesis has replaced by `for _ in elements`."""
    if not self._iterated:
        self.__enter__()
        self.iterator = iter(self)
    if next(self.iterator, self) is None:
        return True
    self.__exit__(None)
    return False


if not hasattr(many, "more"):
    many.more = _more  # type: ignore[attr-defined]

_NAMES = st.text("abcdefghij_", min_size=1, max_size=8)
_COUNT = {"type": "integer", "minimum": 0, "maximum": 4}


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


_SCALARS = [
    _object({"type": {"enum": ["null", "boolean", "number", "integer", "string"]}}, ["type"]),
    _object({"type": {"const": "integer"}, "minimum": {"type": "integer"}}, ["type", "minimum"]),
    _object(
        {
            "type": {"const": "integer"},
            "minimum": {"type": "integer", "minimum": -1000, "maximum": 0},
            "maximum": {"type": "integer", "minimum": 0, "maximum": 100000},
        },
        ["type", "minimum", "maximum"],
    ),
    _object(
        {
            "type": {"const": "number"},
            "minimum": {"type": "number", "minimum": -100, "maximum": 0},
            "exclusiveMaximum": {"type": "number", "minimum": 1, "maximum": 100},
        },
        ["type", "minimum", "exclusiveMaximum"],
    ),
    _object(
        {
            "type": {"const": "string"},
            "minLength": _COUNT,
            "maxLength": {"type": "integer", "minimum": 4, "maximum": 60},
        },
        ["type", "maxLength"],
    ),
    _object(
        {
            "type": {"const": "string"},
            "pattern": {"enum": [r"^[a-c]+$", r"^[0-9]{2,4}-[0-9]{2}$", r"^(yes|no)$", r"^x.*y$"]},
        },
        ["type", "pattern"],
    ),
    _object(
        {
            "type": {"const": "string"},
            "format": {"enum": ["date", "time", "date-time", "uuid", "ipv4", "email"]},
        },
        ["type", "format"],
    ),
    _object(
        {
            "enum": {
                "type": "array",
                "minItems": 1,
                "maxItems": 5,
                "items": {"type": ["string", "integer", "null"]},
            }
        },
        ["enum"],
    ),
    _object({"const": {"type": ["string", "number", "boolean", "null"]}}, ["const"]),
]


@st.composite
def _nested(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    """An object, array or union of what `inner` draws."""
    kind = draw(st.sampled_from(["object", "object", "array", "tuple", "union"]))
    if kind == "object":
        properties = draw(st.dictionaries(_NAMES, inner, min_size=1, max_size=4))
        schema = {"type": "object", "properties": properties}
        if draw(st.booleans()):
            schema["required"] = draw(st.lists(st.sampled_from(sorted(properties)), unique=True))
        if draw(st.booleans()):
            schema["additionalProperties"] = draw(st.booleans())
        return schema
    if kind == "array":
        schema = {"type": "array", "items": draw(inner)}
        if draw(st.booleans()):
            schema["minItems"] = draw(st.integers(0, 3))
        if draw(st.booleans()):
            schema["maxItems"] = draw(st.integers(3, 6))
        return schema
    several = draw(st.lists(inner, min_size=1, max_size=3))
    return {"type": "array", "prefixItems": several} if kind == "tuple" else {"anyOf": several}


def random_schemas(count: int) -> tuple[list[dict[str, Any]], int]:
    """`count` different schemas that the compiler takes, and how many it refused (they would be a 400)."""
    scalar = st.one_of([from_schema(one) for one in _SCALARS])
    found: dict[str, dict[str, Any]] = {}
    refused: set[str] = set()

    @settings(
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=4 * count + 100,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.recursive(scalar, _nested, max_leaves=8))
    def draw(schema: dict[str, Any]) -> None:
        text = json.dumps(schema, sort_keys=True)
        if len(found) >= count or text in found or text in refused:
            return
        try:
            check_source(StructuredOutputsParams(json=schema).source())
            found[text] = schema
        except ValueError:
            refused.add(text)

    draw()
    assert len(found) == count, f"only {len(found)} different schemas were drawn"
    return list(found.values()), len(refused)
