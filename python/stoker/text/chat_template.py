"""Chat templates: a list of messages becomes one prompt string, with the checkpoint's own Jinja template in a
sandbox, rendered as transformers renders it (same filters, globals and white-space rules)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = Mapping[str, Any]


class ChatTemplate:
    """The templates of one checkpoint, by name ("default", "tool_use", ...).

    `special_tokens` (bos_token, eos_token, ...) are variables of the template. Rendered text already holds
    the special tokens that the template wants: encode it with `add_special_tokens=False`.
    """

    def __init__(
        self, templates: str | Mapping[str, str], special_tokens: Mapping[str, str] | None = None
    ) -> None:
        self.templates = {"default": templates} if isinstance(templates, str) else dict(templates)
        if not self.templates:
            raise ValueError("a ChatTemplate needs at least one template")
        self._special_tokens = dict(special_tokens or {})

    @classmethod
    def from_folder(
        cls, folder: str | Path, special_tokens: Mapping[str, str] | None = None
    ) -> ChatTemplate | None:
        """Reads chat_template.jinja, additional_chat_templates/*.jinja, chat_template.json or
        tokenizer_config.json's "chat_template", in this order; None if the checkpoint has no template."""
        templates = _find_templates(Path(folder))
        return cls(templates, special_tokens) if templates else None

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> str:
        """The prompt for `messages`, each a mapping with "role" and usually "content".

        `chat_template` is the name of one of the checkpoint's templates or a template's text.
        `continue_final_message` leaves the last message open for the model to go on. Further keyword
        arguments are variables of the template (`enable_thinking=False`, ...). Raises ValueError for messages
        that the template refuses.
        """
        source = self._choose(chat_template, tools)
        chat = [_plain(_checked(index, message)) for index, message in enumerate(messages)]
        if not chat:
            raise ValueError("a chat needs at least one message, got an empty list")
        if continue_final_message and add_generation_prompt:
            raise ValueError("continue_final_message and add_generation_prompt exclude each other")
        ending = _mark_ending(chat) if continue_final_message else None
        variables: dict[str, Any] = {
            **self._special_tokens,
            **_plain(kwargs),
            "messages": chat,
            "tools": _plain(tools),
            "documents": _plain(documents),
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            text = _compile(source).render(variables)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"the chat template has a syntax error: {error}") from error
        except (jinja2.TemplateError, TypeError, ArithmeticError, LookupError) as error:
            raise ValueError(f"the chat template refused these messages: {error}") from error
        return text if ending is None else _cut_ending(text, ending)

    def _choose(self, chat_template: str | None, tools: object) -> str:
        if chat_template is not None:
            return self.templates.get(chat_template, chat_template)
        if tools is not None and "tool_use" in self.templates:
            return self.templates["tool_use"]
        if "default" not in self.templates:
            raise ValueError(
                f"this checkpoint names several chat templates, choose one of {sorted(self.templates)}"
            )
        return self.templates["default"]


def _find_templates(folder: Path) -> dict[str, str]:
    templates: dict[str, str] = {}
    if (file := folder / "chat_template.jinja").is_file():
        templates["default"] = file.read_text(encoding="utf-8")
    for file in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[file.stem] = file.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if not templates and (file := folder / name).is_file():
            try:
                found = json.loads(file.read_text(encoding="utf-8")).get("chat_template")
            except (ValueError, AttributeError) as error:
                raise ValueError(f"{file} is not a JSON object: {error}") from error
            if isinstance(found, str):
                templates["default"] = found
            elif isinstance(found, list):
                templates = {entry["name"]: entry["template"] for entry in found}
            elif isinstance(found, dict):
                templates = dict(found)
    return templates


def _checked(index: int, message: object) -> Message:
    if not isinstance(message, Mapping):
        raise ValueError(f"messages[{index}] must be a mapping with a 'role', got {type(message).__name__}")
    if not isinstance(message.get("role"), str):
        raise ValueError(f"messages[{index}] needs a 'role' string, got {message.get('role')!r}")
    # A null is left out: templates ask whether a key is there, and would print "None".
    return {key: value for key, value in message.items() if value is not None}


def _plain(value: Any) -> Any:
    """A copy made of plain JSON types only, so that a template can reach no object of ours."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    raise ValueError(f"chat messages may hold JSON values only, got a {type(value).__name__}")


_ENDING = "STOKER_CONTINUES_HERE "


def _mark_ending(chat: list[dict[str, Any]]) -> str:
    """Puts a mark at the end of the last message's text; returns that text."""
    content = chat[-1].get("content")
    holder, key = chat[-1], "content"
    if isinstance(content, list):
        holder = next((part for part in reversed(content) if isinstance(part, dict) and "text" in part), {})
        key, content = "text", holder.get("text")
    if not isinstance(content, str):
        raise ValueError("continue_final_message is set, but the last message has no text to continue")
    holder[key] = content + _ENDING
    return content


def _cut_ending(text: str, ending: str) -> str:
    mark = text.rfind(_ENDING.strip())
    if mark < 0 or ending.strip() not in text:
        raise ValueError(
            "continue_final_message is set, but the chat template does not show the last message as it is"
        )
    kept = text[:mark]
    # A template that trims messages would have trimmed the white space before the mark, too.
    return kept if text.startswith(_ENDING, mark) else kept.rstrip()


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`: marks the assistant's part for training; in a prompt it is only its content."""

    tags = {"generation"}  # noqa: RUF012 (the base class declares it so)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Any) -> str:
        return str(caller())


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which models were not trained on.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


@lru_cache(maxsize=32)
def _compile(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(source)
