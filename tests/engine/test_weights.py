"""Checkpoints load from any of their forms, and what is wrong with one is said by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stoker.engine import checkpoint, weights
from stoker.layers.parameters import ParameterStore
from stoker.model_config import ModelConfig
from stoker.models import registry
from support import checkpoints

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 checkpoint in one file."""
    return checkpoints.save(checkpoints.make_model("qwen2"), tmp_path_factory.mktemp("qwen2"))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """The same, to be spoiled."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def load(folder: Path, dtype: torch.dtype = torch.float32) -> ParameterStore:
    config = ModelConfig.from_folder(folder)
    store = ParameterStore(dtype, CPU)
    registry.build(config, store, 128)
    weights.load(store, checkpoint.resolve(str(folder)))
    return store


def edit(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    """Replaces, adds or (None) removes tensors of the checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in change.items():
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors")


def test_every_tensor_reaches_its_place(folder: Path) -> None:
    """Protects the fused parameters: each slice holds the checkpoint's tensor of its name, bit for bit."""
    store = load(folder)
    tensors = load_file(folder / "model.safetensors")
    assert set(tensors) == set(store.targets)
    for name, tensor in tensors.items():
        assert torch.equal(store.targets[name], tensor), name


def test_the_type_is_converted_on_load(folder: Path) -> None:
    """Protects dtype= other than the checkpoint's."""
    store = load(folder, torch.bfloat16)
    tensors = load_file(folder / "model.safetensors")
    assert all(torch.equal(store.targets[n], t.bfloat16()) for n, t in tensors.items())


def test_many_files_through_the_index(tmp_path: Path) -> None:
    """Protects sharded checkpoints, as transformers writes them."""
    model = checkpoints.make_model("mistral")
    one, many = tmp_path / "one", tmp_path / "many"
    checkpoints.save(model, one)
    checkpoints.save(model, many, max_shard_size="200KB")
    assert len(list(many.glob("*.safetensors"))) > 2
    first, second = load(one), load(many)
    assert all(torch.equal(first.targets[n], second.targets[n]) for n in first.targets)


def test_a_missing_tensor_is_named(copy: Path) -> None:
    edit(copy, {"model.layers.1.mlp.up_proj.weight": None})
    with pytest.raises(
        ValueError, match=r"1 of \d+ tensors are missing: model\.layers\.1\.mlp\.up_proj\.weight"
    ):
        load(copy)


def test_a_misshapen_tensor_is_named(copy: Path) -> None:
    edit(copy, {"model.norm.weight": torch.ones(129)})
    with pytest.raises(ValueError, match=r"model\.norm\.weight.*\[129\].*\[128\]"):
        load(copy)


def test_a_tensor_without_a_place_is_named(copy: Path) -> None:
    """A bias that the architecture does not have must not be dropped silently."""
    edit(copy, {"model.layers.0.mlp.up_proj.bias": torch.ones(160)})
    with pytest.raises(ValueError, match=r"up_proj\.bias.*no place"):
        load(copy)


def test_spare_tensors_are_left_alone(copy: Path) -> None:
    """Old checkpoints hold the rotary frequencies, and a copy of a tied head."""
    edit(
        copy,
        {
            "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(32),
            "lm_head.weight": torch.ones(checkpoints.VOCAB, 128),
        },
    )
    load(copy)


def test_an_integer_tensor_is_refused(copy: Path) -> None:
    edit(copy, {"model.norm.weight": torch.ones(128, dtype=torch.int32)})
    with pytest.raises(ValueError, match=r"model\.norm\.weight.*int32"):
        load(copy)


@pytest.mark.parametrize("keep", [0, 5, 1000, -1])
def test_a_truncated_file_is_named(copy: Path, keep: int) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors: not a whole safetensors file"):
        load(copy)


def test_no_weights_at_all(copy: Path) -> None:
    """A pickle beside config.json is never read."""
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is a pickle"):
        load(copy)


@pytest.mark.parametrize("name", ["../model.safetensors", "absent.safetensors", "model.bin"])
def test_an_index_that_names_no_file_of_the_folder(copy: Path, name: str) -> None:
    """Protects against paths out of the folder and files that were not downloaded."""
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(ValueError, match=r"no name of a safetensors file|no such file"):
        load(copy)


def test_paths_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no checkpoint: it holds no config\.json"):
        checkpoint.resolve(str(tmp_path))
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ValueError, match="is a file"):
        checkpoint.resolve(str(file))
    with pytest.raises(ValueError, match="no such folder; allowed are"):
        checkpoint.resolve("/no/such/folder")


def test_a_hub_id_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*_: object, **__: object) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ValueError, match=r"owner/name.*could not be fetched.*no route to host"):
        checkpoint.resolve("owner/name")


def test_dummy_weights_depend_on_the_seed_only() -> None:
    """Protects load_format="dummy": filled whole, of the spread it says, the same for the same seed."""
    config = ModelConfig.from_dict(
        checkpoints.make_model("llama").config.to_dict() | {"architectures": ["LlamaForCausalLM"]}
    )

    def filled(seed: int) -> ParameterStore:
        store = ParameterStore(torch.float32, CPU)
        registry.build(config, store, 128)
        weights.fill_dummy(store, seed)
        return store

    first, again, other = filled(1), filled(1), filled(2)
    for a, b, c in zip(first.weights, again.weights, other.weights, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
        assert 0.015 < a.std() < 0.025
        assert (a == 0).float().mean() < 0.01
    assert all((norm == 1).all() for norm in first.ones)
