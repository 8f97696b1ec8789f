"""Chat templates render as transformers renders them, and cannot reach out of their sandbox."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stoker.text import ChatTemplate, Tokenizer

from .conftest import byte_level, write_folder

PLAIN = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
RICH = """{%- if tools %}
    {{- tools | tojson(indent=2) }}
{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for message in messages %}
    {%- if message.role == 'skip' %}{% continue %}{% endif %}
    {%- set ns.last = loop.index0 %}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}[A]{{ message.content }}{% endgeneration %}
    {%- else %}
        {{- '[' ~ message.role | upper ~ ']' ~ message.content }}
    {%- endif %}
    {%- if message.tool_calls is defined %}{{ message.tool_calls | tojson }}{% endif %}
{% endfor %}
{%- if thinking is defined and thinking %}<think>{% endif %}
{{- eos_token }}{{ ns.last }}
"""
CHATS: list[list[dict[str, object]]] = [
    [{"role": "user", "content": " hello "}],
    [
        {"role": "system", "content": "é <b>"},
        {"role": "user", "content": "1"},
        {"role": "skip", "content": ""},
        {"role": "assistant", "content": "2 ", "tool_calls": [{"name": "f", "arguments": {"a": "<é>"}}]},
        {"role": "user", "content": "3"},
    ],
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize("template", [PLAIN, RICH])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize(
    "options", [{}, {"tools": TOOLS}, {"thinking": True}, {"add_generation_prompt": True}]
)
def test_renders_as_transformers(
    tmp_path: Path, template: str, chat: list[dict[str, object]], options: dict[str, object]
) -> None:
    """The same characters, white space included: a model sees the prompt it was trained on."""
    transformers = pytest.importorskip("transformers")
    folder = write_folder(tmp_path, byte_level(), chat_template=template)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(str(folder))
    ours = Tokenizer.from_folder(folder).chat_template
    assert ours is not None
    full = {"add_generation_prompt": False, **options}
    expected = theirs.apply_chat_template(chat, tokenize=False, **full)
    assert ours.render(chat, **full) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("last", ["The answer is", "with space  ", [{"type": "text", "text": "parts"}]])
def test_continue_final_message_as_transformers(tmp_path: Path, last: object) -> None:
    """The model goes on with the last message instead of answering it."""
    transformers = pytest.importorskip("transformers")
    template = PLAIN.replace(
        "m['content'] | trim", "(m.content if m.content is string else m.content[0].text) | trim"
    )
    folder = write_folder(tmp_path, byte_level(), chat_template=template)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(str(folder))
    ours = ChatTemplate.from_folder(folder, {"bos_token": "<s>"})
    assert ours is not None
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": last}]
    expected = theirs.apply_chat_template(chat, tokenize=False, continue_final_message=True)
    assert ours.render(chat, continue_final_message=True, add_generation_prompt=False) == expected


def test_where_a_template_is_found(tmp_path: Path) -> None:
    """chat_template.jinja outranks tokenizer_config.json; named templates; none at all."""
    assert ChatTemplate.from_folder(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {"chat_template": [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]}
        )
    )
    found = ChatTemplate.from_folder(tmp_path)
    assert found is not None
    assert found.render(CHATS[0]) == "D"
    assert found.render(CHATS[0], tools=TOOLS) == "T"
    assert found.render(CHATS[0], chat_template="tool_use") == "T"
    assert found.render(CHATS[0], chat_template="{{ messages|length }}") == "1"
    (tmp_path / "chat_template.jinja").write_text("J")
    found = ChatTemplate.from_folder(tmp_path)
    assert found is not None
    assert found.render(CHATS[0]) == "J"


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ range(10 ** 9) | list }}",
        "{{ raise_exception.__globals__ }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(attack: str) -> None:
    """Templates come with checkpoints from strangers."""
    try:
        text = ChatTemplate(attack).render(CHATS[0])
    except ValueError:
        return
    assert text == "", "what the sandbox hides is undefined and renders as nothing"


@pytest.mark.parametrize(
    ("messages", "template", "message"),
    [
        ([], "x", "at least one message"),
        (["hello"], "x", r"messages\[0\] must be a mapping"),
        ([{"content": "x"}], "x", "needs a 'role'"),
        ([{"role": "user", "content": object()}], "x", "JSON values only"),
        ([{"role": "user"}], "{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ([{"role": "user"}], "{% if %}", "syntax error"),
        ([{"role": "user"}], "{{ messages[0].content + 1 }}", "refused"),
    ],
)
def test_bad_messages_are_refused(messages: list[dict[str, object]], template: str, message: str) -> None:
    """A ValueError that says what is wrong, never a traceback out of Jinja."""
    with pytest.raises(ValueError, match=message):
        ChatTemplate(template).render(messages)
