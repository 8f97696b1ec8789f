"""The embedding table at the model's entrance and the head at its exit, which may be the same tensor."""

from __future__ import annotations

import torch

from stoker.layers.linear import Linear
from stoker.layers.parameters import ParameterStore


class Embedding:
    """out[t] = weight[tokens[t]]; weight [vocab, hidden]."""

    __slots__ = ("weight",)

    def __init__(self, store: ParameterStore, name: str, vocab_size: int, hidden_size: int) -> None:
        self.weight = store.matrix([(f"{name}.weight", vocab_size)], hidden_size)

    def __call__(self, out: torch.Tensor, tokens: torch.Tensor) -> None:
        """tokens int32 [T], each in [0, vocab) -> out [T, hidden]."""
        torch.index_select(self.weight, 0, tokens, out=out)


class Head(Linear):
    """logits = hidden @ weight.T, with the embedding's weight where they are tied."""

    __slots__ = ()

    def __init__(
        self, store: ParameterStore, name: str, vocab_size: int, hidden_size: int, tied: Embedding | None
    ) -> None:
        super().__init__(tied.weight if tied else store.matrix([(f"{name}.weight", vocab_size)], hidden_size))
