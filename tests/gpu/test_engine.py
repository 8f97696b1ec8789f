"""The engine on a GPU: the tokens of transformers and of the CPU's engine, with and without graphs, overlap, cache, swap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stoker.config import EngineConfig
from stoker.engine.engine import Engine
from stoker.sampling_params import SamplingParams
from support import checkpoints
from support.kv_shortage import short_of_kv

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

NEW_TOKENS = 48
AMPLE, SHORT = 2800, 120
WAYS: dict[str, dict[str, Any]] = {
    "graphs": {"num_kv_blocks": AMPLE},
    "eager": {"num_kv_blocks": AMPLE, "enforce_eager": True, "enable_prefix_caching": False},
    "no_overlap": {"num_kv_blocks": AMPLE, "overlap": False},
    "short_of_kv": short_of_kv(SHORT),
    "swapped": short_of_kv(SHORT, swap=True) | {"enable_prefix_caching": False},
    "swapped_eager": short_of_kv(SHORT, swap=True) | {"enforce_eager": True, "overlap": False},
}


def run(folder: Path, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    config = EngineConfig(
        str(folder), max_num_seqs=16, max_num_batched_tokens=96, max_model_len=700, **options
    )
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    with Engine(config) as engine:
        for i, prompt in enumerate(prompts):
            engine.add_request(str(i), prompt, params)
        answers: list[list[int]] = [[] for _ in prompts]
        while engine.has_unfinished():
            for output in engine.step():
                answers[int(output.rid)] += output.new_token_ids
                assert output.finish_reason in (None, "length"), output.message
        stats, swaps = engine.stats(), engine.loop.stats().num_swaps
    assert (stats.num_preemptions > 0) == (options["num_kv_blocks"] == SHORT)
    assert (swaps > 0) == (options.get("preemption") == "swap")
    assert stats.num_free_blocks + stats.num_cached_blocks == stats.num_blocks
    return answers


@pytest.fixture(scope="module", params=checkpoints.ARCHITECTURES)
def golden(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[list[int]], checkpoints.Reference]:
    """A checkpoint, prompts, and transformers' answers in float32 on the CPU."""
    model = checkpoints.make_model(request.param)
    folder = checkpoints.save(model, tmp_path_factory.mktemp(request.param))
    prompts = checkpoints.prompts(32, 600, seed=11)
    return folder, prompts, checkpoints.generate(model, prompts, NEW_TOKENS)


@pytest.mark.parametrize("way", list(WAYS))
def test_float32_tokens_equal_transformers(golden: Any, way: str) -> None:
    """Protects the GPU's whole path: upload, padding, staged changes, graphs, seats, downloads."""
    folder, prompts, reference = golden
    agreement = checkpoints.compare(
        reference, run(folder, prompts, device="cuda", dtype="float32", **WAYS[way])
    )
    assert agreement.wrong == 0, agreement
    assert agreement.near_ties <= 3, agreement


def test_bfloat16_graphs_change_nothing(golden: Any) -> None:
    """Protects the planned kernels under graphs: the same steps, captured and op by op, give the same tokens.

    Linear layers are cuBLAS's, whose rounding may change with a bucket's padding: most requests must agree.
    """
    folder, prompts, _ = golden
    options = {"device": "cuda", "dtype": "bfloat16", "num_kv_blocks": AMPLE}
    graphs = run(folder, prompts, **options)
    eager = run(folder, prompts, enforce_eager=True, **options)
    begun_alike = sum(a[:4] == b[:4] for a, b in zip(graphs, eager, strict=True))
    assert begun_alike >= 0.8 * len(prompts)


def on_both_devices(
    folder: Path, requests: list[tuple[list[int], SamplingParams]]
) -> tuple[dict[str, list[int]], dict[str, list[int]], list[float], list[float]]:
    """Tokens by rid on the CPU and on the GPU, float32; then the logprobs that came with them, sorted."""
    tokens: list[dict[str, list[int]]] = []
    logprobs: list[list[float]] = []
    for device in ("cpu", "cuda"):
        config = EngineConfig(
            str(folder),
            device=device,
            dtype="float32",
            max_num_seqs=8,
            max_model_len=700,
            num_kv_blocks=AMPLE,
        )
        with Engine(config) as engine:
            for i, (prompt, params) in enumerate(requests):
                engine.add_request(str(i), prompt, params)
            got: dict[str, list[int]] = {}
            values: list[float] = []
            while engine.has_unfinished():
                for output in engine.step():
                    assert output.finish_reason in (None, "length", "stop"), output.message
                    got.setdefault(output.rid, []).extend(output.new_token_ids)
                    values.extend(entry.logprobs[0] for entry in output.new_logprobs or [])
        tokens.append(got)
        logprobs.append(sorted(values))
    assert sum(tokens[0][rid] == tokens[1][rid] for rid in tokens[0]) >= len(requests) - 1
    return tokens[0], tokens[1], logprobs[0], logprobs[1]


def test_bias_and_stop_tokens_reach_the_captured_sampler(golden: Any) -> None:
    """Tables that grow while others run: graphs hold where they were, and capturing again must touch nobody's tokens."""
    folder, prompts, _ = golden
    requests = []
    for i, prompt in enumerate(prompts[:12]):
        # 3, 20 or 60 entries: within the tables' first room, and beyond it twice.
        width = (0, 3, 20, 60)[i % 4]
        params = SamplingParams(
            temperature=0.0,
            max_tokens=24,
            ignore_eos=True,
            logit_bias={7 * k + i: 40.0 + (k * 13) % 17 for k in range(width)} or None,
            stop_token_ids=tuple(range(900, 900 + width)),
            min_tokens=8 if width else 0,
        )
        requests.append((prompt, params))
    _, gpu, _, _ = on_both_devices(folder, requests)
    assert all(token in range(i, 7 * 60 + i, 7) for i in (1, 2, 3) for token in gpu[str(i)])


def test_logprobs_come_with_the_tokens(golden: Any) -> None:
    """The path that waits at launch: logprobs, prompt logprobs and penalties among plain requests."""
    folder, prompts, _ = golden
    requests = []
    for i, prompt in enumerate(prompts[:8]):
        params = SamplingParams(
            temperature=0,
            max_tokens=12,
            ignore_eos=True,
            logprobs=2 if i % 2 else None,
            prompt_logprobs=0 if i % 3 == 0 else None,
            presence_penalty=2.0 if i % 4 == 0 else 0.0,
        )
        requests.append((prompt, params))
    cpu, gpu, cpu_values, gpu_values = on_both_devices(folder, requests)
    assert len(cpu_values) == len(gpu_values) > 0
    if cpu == gpu:
        assert max(abs(a - b) for a, b in zip(cpu_values, gpu_values, strict=True)) < 1e-3
