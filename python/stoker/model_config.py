"""What a checkpoint says of its model: config.json and generation_config.json. No torch here."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stoker.config import DTYPES

ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding: base, share of the head dim that turns, and scaling (`default`, `linear`,
    `llama3`).
    """

    theta: float = 10000.0
    rope_type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    partial_rotary_factor: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What the models here need from a Hugging Face config.json."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    rope: RopeConfig = field(default_factory=RopeConfig)
    sliding_window: int | None = None
    layer_windows: tuple[int, ...] = ()
    """Window of each layer; 0: full attention. Empty: sliding_window (or full) everywhere."""
    torch_dtype: str = "float32"
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    attention_multiplier: float | None = None
    quantization: str | None = None
    """fp8: the checkpoint's linear layers are e4m3 with scales."""
    quantization_ignored: tuple[str, ...] = ()
    """Modules that are not."""

    @property
    def scale(self) -> float:
        """Factor of the attention scores."""
        return self.attention_multiplier or self.head_dim**-0.5

    @property
    def num_parameters(self) -> int:
        """Of all weight matrices (norms and biases are not counted)."""
        attention = 2 * (self.num_attention_heads + self.num_key_value_heads) * self.head_dim
        layer = self.hidden_size * (attention + 3 * self.intermediate_size)
        embeddings = (1 if self.tie_word_embeddings else 2) * self.vocab_size * self.hidden_size
        return layer * self.num_hidden_layers + embeddings

    def window(self, layer: int) -> int:
        """Sliding window of a layer in tokens, itself included; 0: none."""
        if self.layer_windows:
            return self.layer_windows[layer]
        return self.sliding_window or 0

    @classmethod
    def from_folder(cls, folder: str | Path) -> ModelConfig:
        """Reads `folder/config.json`. ValueError where it is missing, broken, or of a kind not known here."""
        path = Path(folder) / "config.json"
        return cls.from_dict(read_json(path), source=str(path))

    @classmethod
    def from_dict(cls, raw: dict[str, Any], source: str = "config.json") -> ModelConfig:
        """From the parsed config.json; `source` is named in errors."""
        architectures = raw.get("architectures") or []
        if not architectures:
            raise ValueError(f"{source}: 'architectures' is missing; it must name one model class")
        architecture = str(architectures[0])
        quantization, ignored = _quantization(raw, source)
        heads = _integer(raw, "num_attention_heads", source)
        hidden = _integer(raw, "hidden_size", source)
        head_dim = raw.get("head_dim") or hidden // heads
        kv_heads = raw.get("num_key_value_heads") or heads
        if heads % kv_heads:
            raise ValueError(
                f"{source}: num_attention_heads={heads} must be a multiple of num_key_value_heads={kv_heads}"
            )
        layers = _integer(raw, "num_hidden_layers", source)
        act = raw.get("hidden_act", "silu")
        if act not in ("silu", "swish"):
            raise ValueError(f"{source}: hidden_act={act!r} is not known; allowed is 'silu'")
        dtype = str(raw.get("dtype") or raw.get("torch_dtype") or "float32")
        window, windows = _windows(raw, architecture, layers)
        return cls(
            architecture=architecture,
            vocab_size=_integer(raw, "vocab_size", source),
            hidden_size=hidden,
            intermediate_size=_integer(raw, "intermediate_size", source),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            max_position_embeddings=_integer(raw, "max_position_embeddings", source, default=2048),
            rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            hidden_act="silu",
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            attention_bias=bool(raw.get("attention_bias", architecture == "Qwen2ForCausalLM")),
            mlp_bias=bool(raw.get("mlp_bias", False)),
            rope=_rope(raw, source),
            sliding_window=window,
            layer_windows=windows,
            torch_dtype=dtype if dtype in DTYPES else "float32",
            bos_token_id=raw.get("bos_token_id"),
            eos_token_ids=token_ids(raw.get("eos_token_id")),
            quantization=quantization,
            quantization_ignored=ignored,
        )


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """What generation_config.json says: the tokens that end an answer, and the sampling the authors
    recommend.
    """

    eos_token_ids: tuple[int, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)
    """temperature, top_k, top_p, min_p, repetition_penalty as far as they are given."""

    @classmethod
    def from_folder(cls, folder: str | Path, model: ModelConfig) -> GenerationConfig:
        """From `folder/generation_config.json`; without one, the end tokens of config.json."""
        path = Path(folder) / "generation_config.json"
        raw = read_json(path) if path.is_file() else {}
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        eos = token_ids(raw.get("eos_token_id")) or model.eos_token_ids
        return cls(eos, {n: raw[n] for n in names if raw.get(n) is not None})


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ValueError that names the file where there is none or it is broken."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{path}: no such file; a checkpoint folder holds config.json and *.safetensors"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must hold a JSON object, not {type(value).__name__}")
    return value


def token_ids(value: Any) -> tuple[int, ...]:
    """One id, a list of ids, or None, as a tuple."""
    if value is None:
        return ()
    return tuple(int(v) for v in value) if isinstance(value, (list, tuple)) else (int(value),)


def _integer(raw: dict[str, Any], name: str, source: str, default: int | None = None) -> int:
    value = raw.get(name, default)
    if not isinstance(value, int) or value <= 0:
        raise ValueError(f"{source}: {name}={value!r} must be a positive integer")
    return value


def _windows(raw: dict[str, Any], architecture: str, layers: int) -> tuple[int | None, tuple[int, ...]]:
    """The window and, where layers differ, the window of each. Qwen uses one only if use_sliding_window
    says so.
    """
    window = raw.get("sliding_window")
    if architecture.startswith("Qwen") and not raw.get("use_sliding_window", False):
        return None, ()
    if not window:
        return None, ()
    types = raw.get("layer_types")
    if types:
        return window, tuple(window if t == "sliding_attention" else 0 for t in types)
    if architecture.startswith("Qwen"):
        first = raw.get("max_window_layers", layers)
        return window, tuple(window if i >= first else 0 for i in range(layers))
    return window, ()


def _quantization(raw: dict[str, Any], source: str) -> tuple[str | None, tuple[str, ...]]:
    """What `quantization_config` says, of the two spellings of fp8 there are: quant_method "fp8" (a scale for each tensor,
    or for each block of 128 x 128), and compressed-tensors' "float-quantized". Inputs are quantised for each token
    whatever it says of them.
    """
    config = raw.get("quantization_config") or raw.get("compression_config")
    if not config:
        return None, ()
    method = str(config.get("quant_method", ""))
    if method == "fp8":
        if config.get("weight_block_size") not in (None, [128, 128]):
            raise ValueError(
                f"{source}: weight_block_size={config['weight_block_size']} is not built; allowed is [128, 128]"
            )
        return "fp8", tuple(config.get("modules_to_not_convert") or config.get("ignored_layers") or ())
    groups = (config.get("config_groups") or {}).values()
    weights = [group.get("weights") or {} for group in groups]
    if (
        method == "compressed-tensors"
        and weights
        and all(w.get("type") == "float" and w.get("num_bits") == 8 for w in weights)
    ):
        return "fp8", tuple(config.get("ignore") or ())
    raise ValueError(
        f"{source}: a checkpoint quantized by {method or 'an unknown method'!r} is not built; allowed are fp8 "
        "(quant_method 'fp8', or 'compressed-tensors' with 8-bit floats), bf16, fp16 and fp32"
    )


def _rope(raw: dict[str, Any], source: str) -> RopeConfig:
    """Both spellings: rope_theta + rope_scaling (transformers 4), and rope_parameters (5)."""
    scaling = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    theta = float(raw.get("rope_theta") or scaling.get("rope_theta") or 10000.0)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in ROPE_TYPES:
        raise ValueError(f"{source}: rope_type={kind!r} is not built; allowed are {', '.join(ROPE_TYPES)}")
    factor = float(scaling.get("factor", 1.0))
    if not math.isfinite(factor) or factor < 1.0:
        raise ValueError(f"{source}: rope scaling factor={factor!r} must be at least 1")
    return RopeConfig(
        theta=theta,
        rope_type=kind,
        factor=factor,
        low_freq_factor=float(scaling.get("low_freq_factor", 1.0)),
        high_freq_factor=float(scaling.get("high_freq_factor", 4.0)),
        original_max_position_embeddings=int(
            scaling.get("original_max_position_embeddings", raw.get("max_position_embeddings", 8192))
        ),
        partial_rotary_factor=float(
            scaling.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))
        ),
    )
