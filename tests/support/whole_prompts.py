"""Runs whole prompts through a model by hand: no scheduler, one block after another, each prompt a row."""

from __future__ import annotations

from pathlib import Path

import torch

from stoker.engine import weights
from stoker.engine.kv_cache import KVPool, kv_groups
from stoker.layers.context import ActivationPool, StepContext
from stoker.layers.parameters import ParameterStore
from stoker.model_config import ModelConfig
from stoker.models import registry
from stoker.models.llama import Llama

BLOCK = 16


def load(folder: Path, dtype: torch.dtype) -> Llama:
    """A checkpoint's model in `dtype`."""
    config = ModelConfig.from_folder(folder)
    store = ParameterStore(dtype, torch.device("cpu"))
    model = registry.build(config, store, config.max_position_embeddings)
    weights.load(store, folder)
    return model


def logits(model: Llama, prompts: list[list[int]], dtype: torch.dtype) -> list[torch.Tensor]:
    """[len(prompt), vocab] of each prompt, all computed in one step."""
    config = model.config
    counts = [len(p) for p in prompts]
    total = sum(counts)
    blocks = [-(-n // BLOCK) for n in counts]
    group = kv_groups(config, BLOCK, dtype)[0]
    pool = KVPool(group, config, 1 + sum(blocks), dtype, torch.device("cpu"))
    table = torch.zeros(len(prompts) + 1, max(blocks), dtype=torch.int32)
    slots, next_block = [], 1
    for seat, (count, needed) in enumerate(zip(counts, blocks, strict=True), start=1):
        mine = torch.arange(next_block + needed - 1, next_block - 1, -1, dtype=torch.int32)
        next_block += needed
        table[seat, :needed] = mine
        at = torch.arange(count)
        slots.append(mine[at // BLOCK] * BLOCK + at % BLOCK)
    indptr = torch.tensor([0, *counts]).cumsum(0).to(torch.int32)
    ctx = StepContext(
        positions=torch.cat([torch.arange(n) for n in counts]).to(torch.int32),
        slots=[torch.cat(slots).to(torch.int32)],
        block_tables=[table],
        row_seat=torch.arange(1, len(prompts) + 1, dtype=torch.int32),
        row_indptr=indptr,
        row_kv_len=torch.tensor(counts, dtype=torch.int32),
        num_decode_rows=0,
        kv_caches=pool.layers,
        activations=ActivationPool(config, total, dtype, torch.device("cpu")).views(total),
    )
    with torch.inference_mode():
        tokens = torch.tensor([t for p in prompts for t in p], dtype=torch.int32)
        hidden = model.forward(tokens, ctx)
        out = torch.empty(total, config.vocab_size, dtype=dtype)
        model.logits(out, hidden)
    return list(out.split(counts))
