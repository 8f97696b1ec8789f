"""What an answer must look like: a JSON schema, a regular expression, a grammar or a choice. Names are vLLM's; llguidance reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

_KINDS = ("json", "regex", "choice", "grammar", "json_object")
_PREFIX = "structured_outputs"
_WHITESPACE = r"\n {0,20}| "


@dataclass(frozen=True)
class StructuredOutputsParams:
    """One constraint on an answer. Exactly one of the first five is given; anything else raises ValueError.

    Every token of the answer is drawn from those that the constraint allows, and it can end by itself only where the
    constraint is fulfilled. Needs the extra `serve` (llguidance) and a tokenizer.
    """

    json: str | dict[str, Any] | None = None
    """A JSON schema, as an object or as text."""
    regex: str | None = None
    """A regular expression that the whole answer matches (Rust's syntax: no look-around, no back references)."""
    choice: Sequence[str] | None = None
    """The answer is one of these texts."""
    grammar: str | None = None
    """A context-free grammar: Lark's notation as llguidance has it (`start: ...`), or GBNF (`root ::= ...`)."""
    json_object: bool | None = None
    """Any JSON object."""
    disable_any_whitespace: bool = False
    """JSON without whitespace between its parts."""
    disable_additional_properties: bool = True
    """Objects whose schema lists properties and does not speak of others have no others, as with vLLM's usual backend
    (JSON Schema by itself allows any)."""
    whitespace_pattern: str | None = None
    """What may stand between the parts of JSON, as a regular expression; overrules disable_any_whitespace. None: a
    space, or a new line and its indentation, so that no answer is whitespace without end."""

    def __post_init__(self) -> None:
        given = [kind for kind in _KINDS if getattr(self, kind) not in (None, False)]
        if len(given) != 1:
            raise ValueError(
                f"{_PREFIX}: exactly one of {', '.join(_KINDS)} must be given, "
                f"not {' and '.join(given) if given else 'none'}"
            )
        for name in ("regex", "grammar", "whitespace_pattern"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise ValueError(f"{_PREFIX}.{name}={value!r}: must be a non-empty string")
        if self.json is not None:
            object.__setattr__(self, "json", _schema_text(self.json))
        if self.choice is not None:
            object.__setattr__(self, "choice", _choices(self.choice))

    def __hash__(self) -> int:
        return hash(self.source())

    def source(self) -> str:
        """The grammar as llguidance takes it: what a compiled one is cached by. ImportError names the pip command."""
        matcher = _llguidance().LLMatcher
        if self.json is not None or self.json_object:
            assert not isinstance(self.json, dict)
            schema = self.json if self.json is not None else '{"type":"object"}'
            if self.disable_additional_properties:
                schema = json.dumps(_closed(json.loads(schema)), ensure_ascii=False)
            return str(matcher.grammar_from_json_schema(schema, overrides=self._json_options()))
        if self.regex is not None:
            return str(matcher.grammar_from_regex(self.regex))
        if self.choice is not None:
            return str(matcher.grammar_from_lark("start: " + " | ".join(map(_lark_string, self.choice))))
        assert self.grammar is not None
        return str(matcher.grammar_from_lark(_as_lark(self.grammar)))

    def _json_options(self) -> dict[str, Any]:
        if self.whitespace_pattern is None and self.disable_any_whitespace:
            return {"whitespace_flexible": False}
        return {"whitespace_pattern": self.whitespace_pattern or _WHITESPACE}

    @classmethod
    def from_any(cls, value: object) -> StructuredOutputsParams:
        """From one of these or a mapping of its fields. ValueError names the allowed fields."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise ValueError(
                f"{_PREFIX}={value!r}: must be a StructuredOutputsParams or a dict of its fields"
            )
        known = {field.name for field in fields(cls)}
        unknown = [str(name) for name in value if name not in known]
        if unknown:
            raise ValueError(
                f"{_PREFIX}: no field {', '.join(unknown)}; allowed are {', '.join(sorted(known))}"
            )
        return cls(**value)


def check_source(source: str) -> None:
    """Raises ValueError with the compiler's words for a grammar that cannot be compiled, whatever the tokenizer."""
    message = _llguidance().LLMatcher.validate_grammar(source, None, limits=parser_limits())
    if message and not message.startswith("WARNING"):
        raise ValueError(refusal(message))


def refusal(message: str) -> str:
    """What a user is told about a grammar that does not compile."""
    return f"{_PREFIX}: {message.strip()[:1000]}"


def is_refusal(message: str) -> bool:
    """Whether an error's message says that the request's own grammar is at fault."""
    return message.startswith(_PREFIX)


def parser_limits() -> Any:
    """How much work a grammar may cost: about 100 ms to compile, 15 ms for a mask, tens of MB for its states."""
    return _llguidance().LLParserLimits(
        initial_lexer_fuel=5_000_000,
        step_lexer_fuel=200_000,
        max_grammar_size=200_000,
        max_lexer_states=50_000,
        verbose_errors=False,
    )


def depth(value: Any) -> int:
    """How deeply lists and objects of a schema nest."""
    deepest, stack = 0, [(value, 1)]
    while stack:
        item, level = stack.pop()
        if isinstance(item, (dict, list)):
            deepest = max(deepest, level)
            stack += [(one, level + 1) for one in (item.values() if isinstance(item, dict) else item)]
    return deepest


def _beyond(value: Any) -> int | float | None:
    """A number in a schema that would not be compared exactly."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, (dict, list)):
            stack += item.values() if isinstance(item, dict) else item
        elif isinstance(item, (int, float)) and not abs(item) <= 2**53:
            return item
    return None


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError:
        raise ImportError("structured output needs llguidance: pip install 'stoker[serve]'") from None
    return llguidance


def _schema_text(schema: object) -> str:
    if isinstance(schema, str):
        try:
            value = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{_PREFIX}.json is not JSON: {error}") from None
    else:
        value = schema
    if (number := _beyond(value)) is not None:
        raise ValueError(
            f"{_PREFIX}.json holds the number {number}; grammars count in float64, exact up to 2**53"
        )
    if not isinstance(value, (dict, bool)):
        raise ValueError(f"{_PREFIX}.json must be a JSON schema (an object), it is a {type(value).__name__}")
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{_PREFIX}.json is no JSON value: {error}") from None


def _closed(schema: Any) -> Any:
    """The schema with additionalProperties false wherever properties stand alone. What is combined with others (allOf,
    references) is left as it is: parts that exclude each other's properties fit nothing."""
    if not isinstance(schema, dict):
        return schema
    closed = dict(schema)
    for name in ("properties", "$defs", "definitions", "patternProperties"):
        if isinstance(schema.get(name), dict):
            closed[name] = {key: _closed(value) for key, value in schema[name].items()}
    for name in ("anyOf", "oneOf", "prefixItems"):
        if isinstance(schema.get(name), list):
            closed[name] = [_closed(value) for value in schema[name]]
    for name in ("items", "additionalProperties"):
        closed |= {name: _closed(schema[name])} if name in schema else {}
    combined = ("allOf", "anyOf", "oneOf", "$ref", "if", "unevaluatedProperties", "patternProperties")
    if "properties" in schema and not any(name in schema for name in combined):
        closed.setdefault("additionalProperties", False)
    return closed


def _choices(choice: object) -> tuple[str, ...]:
    found = tuple(choice) if isinstance(choice, Sequence) and not isinstance(choice, str) else ()
    if not found or not all(isinstance(one, str) and one for one in found):
        raise ValueError(f"{_PREFIX}.choice={choice!r}: must be a list of non-empty strings")
    return found


def _lark_string(text: str) -> str:
    return json.dumps(text)


def _as_lark(grammar: str) -> str:
    """Lark as it is; GBNF (llama.cpp's EBNF, known by its `::=`) translated."""
    if "::=" not in grammar:
        return grammar
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return str(gbnf_to_lark(grammar))
    except Exception as error:  # the translator raises what it likes
        raise ValueError(refusal(f"the grammar is no GBNF: {error}")) from None
