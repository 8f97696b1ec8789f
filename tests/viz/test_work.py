"""Counted FLOP and bytes of a step are those of a sum over every token, written out."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from stoker.viz.trace import Row, Step
from stoker.viz.work import work_of


@dataclass(frozen=True)
class Sizes:
    hidden_size: int = 8
    vocab_size: int = 20
    intermediate_size: int = 12
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 2
    w: int = 0

    def window(self, layer: int, /) -> int:
        return self.w if layer else 0


@pytest.mark.parametrize("window", [0, 3])
def test_work(window: int) -> None:
    """Of a chunk and a decode row, with and without a window."""
    model = Sizes(w=window)
    rows = [Row(0, 1, 1, 9, True), Row(1, 2, 4, 6, False)]
    step = Step({"num_sampled_rows": 1}, rows)
    a_layer = 8 * (4 + 2 + 2 + 4) * 2 + 3 * 8 * 12
    flop, kv = 0, 0
    for layer in range(3):
        for row in rows:
            first = row.kv_len - row.num_tokens
            for position in range(first, row.kv_len):
                seen = min(position + 1, model.window(layer) or position + 1)
                flop += 2 * a_layer + 2 * 2 * 4 * 2 * seen
            begin = max(0, first + 1 - model.window(layer)) if model.window(layer) else 0
            kv += (row.kv_len - begin) + row.num_tokens
    flop += 2 * 20 * 8
    work = work_of(step, model, 2)
    assert work.flop == flop
    assert work.num_bytes == 2 * (3 * a_layer + 20 * 8 + 5 * 8 + 2 * 2 * 2 * kv)
