"""What the options left open is settled within the model and the memory, and what cannot work is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stoker.config import EngineConfig
from stoker.engine import build as building
from stoker.engine.kv_cache import KVPool, kv_groups, num_blocks_for_memory
from stoker.engine.sizes import StepSizes, fit_model_len, model_len
from stoker.model_config import ModelConfig
from support import checkpoints

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.save(checkpoints.make_model("qwen2"), tmp_path_factory.mktemp("qwen2"))


def config(**options: Any) -> EngineConfig:
    return EngineConfig("x", **options)


def test_a_step_has_room_for_every_running_request() -> None:
    assert StepSizes.settle(config(max_num_seqs=700), None).max_num_batched_tokens == 700
    with pytest.raises(ValueError, match=r"max_num_batched_tokens=8: must be at least max_num_seqs \(16\)"):
        StepSizes.settle(config(max_num_seqs=16, max_num_batched_tokens=8), None)


@pytest.mark.parametrize(
    ("gpu_bytes", "sizes"), [(None, (64, 512)), (40 << 30, (256, 8192)), (80 * 10**9, (1024, 8192))]
)
def test_how_many_run_at_once_follows_the_device(gpu_bytes: int | None, sizes: tuple[int, int]) -> None:
    """And only where it was not asked for."""
    assert StepSizes.settle(config(), gpu_bytes) == StepSizes(*sizes)
    assert StepSizes.settle(config(max_num_seqs=7), gpu_bytes).max_num_seqs == 7


def test_lengths_stay_within_the_model_and_the_pool(folder: Path) -> None:
    """A length that was asked for is refused rather than cut; one that was not follows the pool."""
    model = ModelConfig.from_folder(folder)
    assert model_len(config(), model) == 2048
    with pytest.raises(ValueError, match="max_model_len=4096: the model allows at most 2048"):
        model_len(config(max_model_len=4096), model)
    assert fit_model_len(config(), 2048, num_blocks=11) == 160
    with pytest.raises(ValueError, match="holds 160 tokens, less than one request of max_model_len=200"):
        fit_model_len(config(max_model_len=200), 200, num_blocks=11)


def test_blocks_follow_the_memory_but_not_beyond_use(folder: Path) -> None:
    group = kv_groups(ModelConfig.from_folder(folder), 16, torch.float32)[0]
    assert group.block_bytes == 2 * 1 * 16 * 64 * 4 * 2
    assert num_blocks_for_memory(group, 10.5 * group.block_bytes, 2048, 64) == 10
    assert num_blocks_for_memory(group, 1e12, 2048, 4) == 4 * 128 + 1


def test_caches_share_no_byte(folder: Path) -> None:
    """Layers, K and V lie apart in one block; the ops need the last three dimensions dense."""
    model = ModelConfig.from_folder(folder)
    pool = KVPool(kv_groups(model, 16, torch.float32)[0], model, 3, torch.float32, CPU)
    for i, cache in enumerate(tensor for layer in pool.layers for tensor in layer):
        assert cache.shape == (3, 1, 16, 64)
        assert cache[0].is_contiguous()
        cache.fill_(i + 1)
    values = [float(t.unique()) for layer in pool.layers for t in layer]
    assert values == [1.0, 2.0, 3.0, 4.0]


def raw_config(folder: Path) -> dict[str, Any]:
    from stoker.model_config import read_json

    return read_json(folder / "config.json")


def test_an_unknown_architecture_names_those_that_are_known(folder: Path, tmp_path: Path) -> None:
    text = (folder / "config.json").read_text().replace("Qwen2ForCausalLM", "MambaForCausalLM")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"MambaForCausalLM.*LlamaForCausalLM"):
        building.build(EngineConfig(str(tmp_path), load_format="dummy"))


def test_a_gpu_that_is_not_there() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match="sees no CUDA device; allowed is 'cpu'"):
        building.choose_device("cuda")
