"""The embedding table at the model's entrance and the head at its exit, which may be the same tensor."""

from __future__ import annotations

import torch

from stoker.layers.parameters import ParameterStore


class Embedding:
    """out[t] = weight[tokens[t]]; weight [vocab, hidden]."""

    __slots__ = ("weight",)

    def __init__(self, store: ParameterStore, name: str, vocab_size: int, hidden_size: int) -> None:
        self.weight = store.matrix([(f"{name}.weight", vocab_size)], hidden_size)

    def __call__(self, out: torch.Tensor, tokens: torch.Tensor) -> None:
        """tokens int32 [T], each in [0, vocab) -> out [T, hidden]."""
        torch.index_select(self.weight, 0, tokens, out=out)


class Head:
    """logits = hidden @ weight.T, with the embedding's weight where they are tied."""

    __slots__ = ("_matmul", "weight_t")

    def __init__(
        self, store: ParameterStore, name: str, vocab_size: int, hidden_size: int, tied: Embedding | None
    ) -> None:
        weight = tied.weight if tied else store.matrix([(f"{name}.weight", vocab_size)], hidden_size)
        self.weight_t = weight.t()
        self._matmul = store.matmul

    def __call__(self, out: torch.Tensor, hidden: torch.Tensor) -> None:
        """hidden [N, hidden] -> out [N, vocab]."""
        self._matmul(out, hidden, self.weight_t, None)
