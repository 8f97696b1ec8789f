"""What a step has to compute and to move, counted from its rows and the model's sizes."""

from __future__ import annotations

from dataclasses import dataclass

from stoker.sim.cost import ModelSizes
from stoker.viz.trace import Step


@dataclass(frozen=True, slots=True)
class Work:
    """Of one step."""

    flop: float
    """Matrix products and attention; a multiply and its add are two."""
    num_bytes: float
    """Weights once, KV of each row once, new KV and embeddings; activations are not counted, they stay in caches."""

    @property
    def intensity(self) -> float:
        """FLOP a byte."""
        return self.flop / self.num_bytes


def work_of(step: Step, model: ModelSizes, element_bytes: int) -> Work:
    """Counts it. `element_bytes`: of a weight and of a KV element."""
    heads, kv_heads, dim = model.num_attention_heads, model.num_key_value_heads, model.head_dim
    a_layer = model.hidden_size * (2 * (heads + kv_heads) * dim + 3 * model.intermediate_size)
    body, head = a_layer * model.num_hidden_layers, model.vocab_size * model.hidden_size
    tokens = sum(row.num_tokens for row in step.rows)
    sampled = int(step.stats.get("num_sampled_rows", len(step.tokens)))
    scores = kv_read = 0
    for layer in range(model.num_hidden_layers):
        window = model.window(layer)
        for row in step.rows:
            first = row.kv_len - row.num_tokens + 1
            seen = _sum_to(row.kv_len, window) - _sum_to(first - 1, window)
            scores += seen
            kv_read += min(row.kv_len, window + row.num_tokens - 1) if window else row.kv_len
    flop = 2 * body * tokens + 2 * head * sampled + 4 * heads * dim * scores
    kv_written = tokens * model.num_hidden_layers
    weights = body + (head if sampled else 0) + tokens * model.hidden_size
    return Work(flop, element_bytes * (weights + 2 * kv_heads * dim * (kv_read + kv_written)))


def _sum_to(n: int, window: int) -> int:
    """KV positions that the tokens 1..n see, all together."""
    if not window or n <= window:
        return n * (n + 1) // 2
    return window * (window + 1) // 2 + (n - window) * window
