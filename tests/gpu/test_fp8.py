"""fp8 on a GPU: the product's error, and the engine with fp8 weights and KV against its own CPU path."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stoker.config import EngineConfig
from stoker.engine.engine import Engine
from stoker.layers.fp8 import Fp8Room, Fp8Rows, Fp8Weight
from stoker.sampling_params import SamplingParams
from support import checkpoints


@pytest.mark.parametrize("rows", [1, 16, 17, 300])
@pytest.mark.parametrize("bias", [False, True])
def test_product(rows: int, bias: bool) -> None:
    """Few rows (ours) and many (torch's scaled product): inputs and weights rounded to e4m3, and no more than that."""
    device = torch.device("cuda")
    room = Fp8Room(device)
    layer = Fp8Weight(512, 384, room, device)
    weight = torch.randn(512, 384, device=device)
    Fp8Rows(layer, 0, 512).copy_(weight)
    room.reserve(300)
    x = torch.randn(rows, 384, device=device).bfloat16()
    add = torch.randn(512, device=device).bfloat16() if bias else None
    out = torch.full((rows, 512), float("nan"), device=device, dtype=torch.bfloat16)
    layer(out, x, add)
    low, scale = room.quantized(x)
    exact = (low.double() * scale[:, None]) @ (layer.weight.double() * layer.scale[:, None]).T
    if add is not None:
        exact += add
    assert ((out - exact).norm() / exact.norm()).item() < 4e-3
    true = x.double() @ weight.double().T + (0 if add is None else add)
    assert ((out - true).norm() / true.norm()).item() < 0.05
    if not bias:
        gated = torch.full((rows, 256), float("nan"), device=device, dtype=torch.bfloat16)
        layer.gated(gated, torch.empty(rows, 512, device=device, dtype=torch.bfloat16), x)
        want = torch.nn.functional.silu(exact[:, :256]) * exact[:, 256:]
        assert ((gated - want).norm() / want.norm()).item() < 1e-2


@pytest.mark.filterwarnings("ignore:kv_cache_dtype")
@pytest.mark.parametrize("options", [{"quantization": "fp8"}, {"kv_cache_dtype": "fp8"}])
def test_engine(options: dict[str, str], tmp_path: Path) -> None:
    """Prefills, chunks and decodes through graphs: most answers begin as on the CPU."""
    folder = checkpoints.save(checkpoints.make_model("mistral"), tmp_path)
    prompts = checkpoints.prompts(16, 300, seed=5)
    answers = {}
    for device in ("cpu", "cuda"):
        config = EngineConfig(
            str(folder),
            device=device,
            dtype="bfloat16",
            max_num_seqs=16,
            max_num_batched_tokens=200,
            max_model_len=400,
            num_kv_blocks=500,
            **options,
        )
        got: list[list[int]] = [[] for _ in prompts]
        with Engine(config) as engine:
            for i, prompt in enumerate(prompts):
                params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
                engine.add_request(str(i), prompt, params)
            while engine.has_unfinished():
                for output in engine.step():
                    assert output.finish_reason in (None, "length"), output.message
                    got[int(output.rid)] += output.new_token_ids
        answers[device] = got
    alike = sum(a[:2] == b[:2] for a, b in zip(answers["cpu"], answers["cuda"], strict=True))
    assert alike >= 0.7 * len(prompts)
