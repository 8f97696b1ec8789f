"""The files of the embedded checkpoint: small, complete, and what they say they are."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from tokenizers import Tokenizer

from stoker.demo_model import CHECKPOINT, MODEL_NAME, load_tokenizer
from stoker.engine.checkpoint import resolve

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer()


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((CHECKPOINT / "config.json").read_text())
    return loaded


def test_files_are_small_and_complete() -> None:
    """The checkpoint travels in the wheel, so it stays under 12 MB, and it is an ordinary folder that others load too."""
    sizes = {path.name: path.stat().st_size for path in CHECKPOINT.iterdir()}
    assert set(sizes) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(sizes.values()) < 12e6


def test_the_engine_finds_it_by_its_name() -> None:
    """`LLM("stoker-demo")` must come to these very files."""
    assert resolve(MODEL_NAME) == CHECKPOINT


def test_weights_fit_the_config(config: dict[str, Any]) -> None:
    """Every tensor is there in bf16 and in the shape that the config asks for; the output is tied to the embedding."""
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    q = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    expected = {"model.embed_tokens.weight": [config["vocab_size"], hidden], "model.norm.weight": [hidden]}
    for i in range(layers):
        expected |= {
            f"model.layers.{i}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": [hidden],
                "post_attention_layernorm": [hidden],
                "self_attn.q_proj": [q, hidden],
                "self_attn.k_proj": [kv, hidden],
                "self_attn.v_proj": [kv, hidden],
                "self_attn.o_proj": [hidden, q],
                "mlp.gate_proj": [inner, hidden],
                "mlp.up_proj": [inner, hidden],
                "mlp.down_proj": [hidden, inner],
            }.items()
        }
    parameters = 0
    with safe_open(CHECKPOINT / "model.safetensors", framework="numpy") as file:
        found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        assert {name: part.get_shape() for name, part in found.items()} == expected
        assert {part.get_dtype() for part in found.values()} == {"BF16"}
        for part in found.values():
            size = 1
            for dimension in part.get_shape():
                size *= dimension
            parameters += size
    assert 2e6 < parameters < 5e6
    assert config["tie_word_embeddings"] is True
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    assert config["max_position_embeddings"] == 2048


def test_tokenizer_matches_the_model(tokenizer: Tokenizer, config: dict[str, Any]) -> None:
    """Ids fit the embedding, and the end token is the one that config and generation config name."""
    assert tokenizer.get_vocab_size() == config["vocab_size"]
    assert max(tokenizer.get_vocab().values()) == config["vocab_size"] - 1
    assert tokenizer.token_to_id("<|end|>") == config["eos_token_id"]
    assert (
        json.loads((CHECKPOINT / "generation_config.json").read_text())["eos_token_id"]
        == config["eos_token_id"]
    )


load_tokenizer_once = functools.cache(load_tokenizer)  # hypothesis wants no fixture


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_survives_the_tokenizer(text: str) -> None:
    """All 256 bytes are covered: nothing becomes unknown, whatever the language."""
    tokenizer = load_tokenizer_once()
    for special in ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>"):
        text = text.replace(special, "")
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_every_byte_is_a_token(tokenizer: Tokenizer) -> None:
    """The byte-level alphabet is whole, so that text of any script is cut into bytes at worst."""
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = ByteLevel.alphabet()
    assert len(alphabet) == 256
    assert [letter for letter in alphabet if tokenizer.token_to_id(letter) is None] == []
    assert len(tokenizer.encode("狐狸").ids) == 6


def test_chat_template(tokenizer: Tokenizer) -> None:
    """Turns are marked by single tokens, and a role that the model does not know is refused."""
    text = json.loads((CHECKPOINT / "tokenizer_config.json").read_text())["chat_template"]

    def refuse(message: str) -> None:
        raise ValueError(message)

    template = jinja2.Environment().from_string(text, globals={"raise_exception": refuse})
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!"}]
    rendered = template.render(messages=messages, add_generation_prompt=True)
    assert rendered == "<|system|>Be brief.<|end|><|user|>Hello!<|end|><|assistant|>"
    tokens = tokenizer.encode(rendered).tokens
    assert [token for token in tokens if token.startswith("<|")] == [
        "<|system|>", "<|end|>", "<|user|>", "<|end|>", "<|assistant|>",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="not tool"):
        template.render(messages=[{"role": "tool", "content": ""}], add_generation_prompt=True)


@pytest.mark.long
def test_the_script_makes_this_very_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The texts and the tokenizer that the script makes today are those the checkpoint was trained with."""
    monkeypatch.setattr(sys, "path", [str(TOOLS), *sys.path])
    from demo_model.tokenizer import train_tokenizer

    assert train_tokenizer(2816, seed=1).to_str() == load_tokenizer().to_str()
