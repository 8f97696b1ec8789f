"""fp8: what is stored, from which checkpoints, and that they all compute the same."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stoker.config import EngineConfig
from stoker.engine import weights
from stoker.engine.engine import Engine
from stoker.layers.fp8 import FP8, Fp8Room, Fp8Rows, Fp8Weight, quantized, widened
from stoker.layers.parameters import ParameterStore
from stoker.model_config import ModelConfig
from stoker.models import registry
from stoker.sampling_params import SamplingParams
from support import checkpoints

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.save(checkpoints.make_model("llama"), tmp_path_factory.mktemp("llama"))


def linear_names(tensors: dict[str, torch.Tensor]) -> list[str]:
    return [name for name in tensors if name.endswith("_proj.weight")]


def rewritten(
    folder: Path,
    to: Path,
    config: dict[str, object],
    scale_of: str,
    per_row: bool = True,
    **extra: torch.Tensor,
) -> Path:
    """The checkpoint with its linear layers in e4m3 and scales beside them."""
    tensors = load_file(folder / "model.safetensors")
    for name in linear_names(tensors):
        weight, scale = quantized(tensors[name])
        if not per_row:
            scale = tensors[name].abs().max()[None] / 448
            weight = (tensors[name] / scale).to(FP8)
        tensors[name], tensors[name + scale_of] = weight, scale[:, None] if per_row else scale
    to.mkdir(exist_ok=True)
    save_file(tensors | extra, to / "model.safetensors")
    raw = json.loads((folder / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(raw | {"quantization_config": config}))
    return to


COMPRESSED = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": {"type": "float", "num_bits": 8, "strategy": "channel"}}},
    "ignore": ["lm_head"],
}


def load(folder: Path) -> ParameterStore:
    config = ModelConfig.from_folder(folder)
    store = ParameterStore(
        torch.float32, CPU, fp8=config.quantization == "fp8", fp8_ignored=config.quantization_ignored
    )
    registry.build(config, store, 128)
    weights.load(store, folder)
    return store


def tokens(folder: Path, **options: object) -> list[list[int]]:
    config = EngineConfig(
        str(folder), device="cpu", dtype="float32", max_num_seqs=4, max_model_len=200, **options
    )
    with Engine(config) as engine:
        answers: list[list[int]] = [[] for _ in range(6)]
        for i, prompt in enumerate(checkpoints.prompts(6, 100, seed=3)):
            engine.add_request(str(i), prompt, SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))
        while engine.has_unfinished():
            for output in engine.step():
                answers[int(output.rid)] += output.new_token_ids
    return answers


def test_rounding_is_bounded() -> None:
    """Each element within half a step of e4m3; a row of zeros stays so."""
    weight = torch.randn(40, 64)
    weight[3] = 0
    low, scale = quantized(weight)
    back = low.float() * scale[:, None]
    assert (back[3] == 0).all()
    # Three bits behind the first; the smallest eighth of a row is denormal.
    limit = torch.maximum(weight.abs() / 16, scale[:, None] * 2**-9 * 1.01)
    assert ((back - weight).abs() <= limit).all()


def test_product_is_close() -> None:
    """One row at a time and many at once, with and without the gate, against float64. Over as many rows either way: a single
    row's error scatters about what rounding gives in the mean."""
    torch.manual_seed(0)
    rows = 40
    room = Fp8Room(CPU)
    layer = Fp8Weight(96, 64, room, CPU)
    weight = torch.randn(96, 64)
    Fp8Rows(layer, 0, 96).copy_(weight)
    room.reserve(rows)
    x = torch.randn(rows, 64)
    want = x.double() @ weight.double().T
    gate = torch.nn.functional.silu(want[:, :48]) * want[:, 48:]
    for at_once in (1, rows):
        out, gated = torch.empty(rows, 96), torch.empty(rows, 48)
        for begin in range(0, rows, at_once):
            part = slice(begin, begin + at_once)
            layer(out[part], x[part], None)
            layer.gated(gated[part], torch.empty(at_once, 96), x[part])
        assert ((out - want).norm() / want.norm()).item() < 0.04
        assert ((gated - gate).norm() / gate.norm()).item() < 0.08


def test_checkpoint_forms_say_the_same(folder: Path, tmp_path: Path) -> None:
    """Quantised on load or before, under either spelling: the same bits, and so the same tokens."""
    compressed = rewritten(folder, tmp_path / "compressed", COMPRESSED, "_scale")
    config = ModelConfig.from_folder(compressed)
    assert config.quantization == "fp8"
    assert tokens(compressed) == tokens(folder, quantization="fp8")


def test_scales_of_a_tensor(folder: Path, tmp_path: Path) -> None:
    """One scale for a whole tensor stands for each of its rows; what is not quantised keeps its place."""
    spelled = {"quant_method": "fp8", "activation_scheme": "static"}
    extra = {"model.layers.0.mlp.down_proj.input_scale": torch.tensor(0.5)}
    store = load(rewritten(folder, tmp_path / "fp8", spelled, "_scale", per_row=False, **extra))
    tensors = load_file(folder / "model.safetensors")
    for name in linear_names(tensors):
        target = store.targets[name]
        assert isinstance(target, Fp8Rows)
        back = target._weight.float() * target._scale[:, None]
        assert (back - tensors[name]).abs().max() <= tensors[name].abs().max() / 28 * 1.01
    assert torch.equal(store.targets["lm_head.weight"], tensors["lm_head.weight"])


def test_scales_of_blocks() -> None:
    """128 x 128 blocks, also where the weight ends inside one."""
    low = torch.randn(200, 300).to(FP8)
    scale = torch.rand(2, 3) + 0.5
    wide = widened(low, scale)
    assert wide[150, 290] == low[150, 290].float() * scale[1, 2]
    assert wide[127, 128] == low[127, 128].float() * scale[0, 1]
    with pytest.raises(ValueError, match=r"\[2, 3\]"):
        widened(low, torch.ones(2, 2))


def test_what_is_wrong_is_named(folder: Path, tmp_path: Path) -> None:
    """A missing scale would be a silent factor; half a product in fp8 cannot be computed as one."""
    broken = rewritten(folder, tmp_path / "broken", COMPRESSED, "_scale")
    tensors = load_file(broken / "model.safetensors")
    name = linear_names(tensors)[0]
    del tensors[name + "_scale"]
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(ValueError, match=f"{name}_scale"):
        load(broken)
    mixed = COMPRESSED | {"ignore": ["re:.*q_proj"]}
    with pytest.raises(ValueError, match="q_proj"):
        load(rewritten(folder, tmp_path / "mixed", mixed, "_scale"))


def test_fp8_kv(folder: Path, tmp_path: Path) -> None:
    """Scales come from the checkpoint; without them 1.0 is used, and said so."""
    with pytest.warns(UserWarning, match=r"1\.0"):
        plain = tokens(folder, kv_cache_dtype="fp8")
    usual = tokens(folder)
    assert sum(a[0] == b[0] for a, b in zip(plain, usual, strict=True)) >= 5
    scales = {
        f"model.layers.{layer}.self_attn.{which}_scale": torch.tensor([0.25 + layer])
        for layer in range(2)
        for which in "kv"
    }
    scaled = rewritten(folder, tmp_path / "kv", COMPRESSED, "_scale", **scales)
    store = load(scaled)
    assert store.kv_scales["model.layers.1.self_attn"].k == 1.25
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokens(scaled, kv_cache_dtype="fp8")
