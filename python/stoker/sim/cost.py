"""Cost models: a roofline from a model's sizes and a device's peaks, or what `stoker simulate fit` wrote to a file."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from stoker._core.sim import CostModel
from stoker.sim.devices import DEVICES, DeviceRow

COST_FIELDS = (
    "step", "from_idle", "row", "chunk_row", "sampled", "weights", "token", "chunk_token", "decode_kv", "chunk_kv", "score",
    "decodes_step", "decodes_row", "decodes_kv", "device_copy", "host_copy", "host_before", "host_after", "window", "windowed_share",
    "beyond_of_size", "noise", "noise_of_size", "launch_of_size",
)  # fmt: skip
_LISTS, _OF_SIZE = ("beyond_of_size", "noise"), ("noise_of_size", "launch_of_size")


class ModelSizes(Protocol):
    """The fields of a ModelConfig that count."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def num_key_value_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def num_parameters(self) -> int: ...
    def window(self, layer: int, /) -> int: ...


@dataclass(frozen=True, slots=True)
class Device:
    """What a step can use."""

    name: str
    peaks: DeviceRow

    @classmethod
    def find(cls, name: str) -> Device:
        """One of the table, or a JSON file with the same columns. Raises ValueError that says which are known."""
        if name in DEVICES:
            return cls(name, DEVICES[name])
        if not name.endswith(".json"):
            raise ValueError(
                f"device {name!r} is not known; allowed are {', '.join(DEVICES)} or a .json file with "
                f"{', '.join(DeviceRow._fields)}"
            )
        raw = _read(name)
        try:
            peaks = DeviceRow(**raw)
        except TypeError:
            raise ValueError(
                f"{name}: must hold {', '.join(DeviceRow._fields)} and nothing else, not {', '.join(raw)}"
            ) from None
        for field, value in zip(DeviceRow._fields, peaks, strict=True):
            if not isinstance(value, int | float) or value < 0:
                raise ValueError(f"{name}: {field} must be a number, 0 or more, not {value!r}")
        return cls(Path(name).stem, peaks)


def roofline(
    model: ModelSizes,
    device: Device,
    *,
    element_bytes: int = 2,
    kv_element_bytes: int = 2,
    block_size: int = 16,
) -> CostModel:
    """Linear layers take their arithmetic or the reading of their weights, whichever is longer; attention likewise; besides,
    a fixed time a layer and a step."""
    peaks = device.peaks
    heads, dim, layers = model.num_attention_heads, model.head_dim, model.num_hidden_layers
    flops = peaks.tflops * 1e3 * peaks.flops_share  # a nanosecond
    attention = peaks.tflops * 1e3 * peaks.attention_share
    read = peaks.gb_per_s * peaks.bytes_share  # bytes a nanosecond
    body, head = _body(model), model.vocab_size * model.hidden_size
    position = kv_bytes(model, kv_element_bytes)
    windows = [w for w in map(model.window, range(layers)) if w]
    return CostModel(
        step=1e3 * (peaks.step_us + layers * peaks.layer_us),
        row=1e3 * layers * peaks.row_us,
        token=2 * body / flops + position / read,
        sampled=2 * head / flops,
        weights=element_bytes * (body + head) / read,
        decode_kv=max(position / read, 4 * heads * dim * layers / attention / 16),
        chunk_kv=position / read,
        score=4 * heads * dim * layers / attention,
        device_copy=2 * position * block_size / read,
        host_copy=position * block_size / peaks.host_gb_per_s,
        host_before=140e3 if device.name != "cpu" else 60e3,
        host_after=20e3,
        window=max(windows, default=0),
        windowed_share=len(windows) / layers,
    )


def kv_blocks(
    model: ModelSizes,
    device: Device,
    *,
    element_bytes: int = 2,
    kv_element_bytes: int = 2,
    block_size: int = 16,
    utilization: float = 0.9,
) -> int:
    """How many KV blocks fit beside the weights, the null block included. Raises ValueError if none do."""
    room = device.peaks.memory_gib * 2**30 * utilization - model.num_parameters * element_bytes
    blocks = int(room // (kv_bytes(model, kv_element_bytes) * block_size))
    if blocks < 2:
        raise ValueError(
            f"{device.name}: {model.num_parameters * element_bytes / 2**30:.1f} GiB of weights leave no room for KV in "
            f"{utilization:g} of its {device.peaks.memory_gib:g} GiB"
        )
    return blocks


def kv_bytes(model: ModelSizes, element_bytes: int) -> int:
    """Of one position, all layers."""
    return 2 * model.num_key_value_heads * model.head_dim * element_bytes * model.num_hidden_layers


def _body(model: ModelSizes) -> int:
    attention = 2 * (model.num_attention_heads + model.num_key_value_heads) * model.head_dim
    return model.num_hidden_layers * model.hidden_size * (attention + 3 * model.intermediate_size)


def cost_dict(cost: CostModel) -> dict[str, Any]:
    """All its coefficients by name, in nanoseconds."""
    return {name: getattr(cost, name) for name in COST_FIELDS}


def cost_from_file(path: str | Path) -> CostModel:
    """From what `stoker simulate fit` wrote. Raises ValueError that names the file and what is wrong."""
    raw = _read(path)
    given = raw.get("cost_model", raw)
    if not isinstance(given, dict):
        raise ValueError(f"{path}: cost_model must be an object")
    unknown = sorted(set(given) - set(COST_FIELDS))
    if unknown:
        raise ValueError(f"{path}: {unknown[0]!r} is no coefficient; allowed are {', '.join(COST_FIELDS)}")
    default = CostModel()
    for name, value in given.items():
        numbers = value if name in (*_LISTS, *_OF_SIZE) and isinstance(value, list) else [value]
        if name in _OF_SIZE and all(isinstance(each, list) for each in numbers):
            numbers = [v for each in numbers for v in each]
        elif name in _OF_SIZE:
            raise ValueError(f"{path}: {name} must be a list of lists of numbers, not {value!r}")
        wanted = type(getattr(default, name))
        if (wanted is not float and not isinstance(value, wanted)) or not all(map(_is_number, numbers)):
            what = {int: "a whole number", float: "a number"}.get(wanted, "a list of numbers")
            raise ValueError(f"{path}: {name} must be {what}, not {value!r}")
        if name != "beyond_of_size" and min(numbers, default=0) < 0:
            raise ValueError(f"{path}: {name} must be 0 or more, not {value!r}")
    return CostModel(**given)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _read(path: str | Path) -> dict[str, Any]:
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must hold a JSON object")
    return value
