"""Greedy recall accuracy of the demo model on fresh prompts, in all, by length and by kind of fact."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch

from stoker.demo_model.recall import RecallPrompt, recall_prompt

from .model import DemoModel


def fresh_prompts(tokenizer: Any, seed: int, count: int, longest: int) -> list[RecallPrompt]:
    """Prompts with unseen names, their lengths spread evenly over 50 to `longest` tokens."""
    rng = Random(seed)

    def tokens_in(text: str) -> int:
        return len(tokenizer.encode(text).ids)

    return [recall_prompt(rng, 50 + (longest - 50) * i // max(1, count - 1), tokens_in) for i in range(count)]


@dataclass(frozen=True)
class Answers:
    """What the model said to each prompt, and whether it was right and ended by itself."""

    lengths: list[int]
    texts: list[str]
    right: list[bool]
    ended: list[bool]

    def summary(self, prompts: Sequence[RecallPrompt]) -> str:
        """One line: the share right in all, by length and by kind."""
        groups: dict[str, list[bool]] = defaultdict(list)
        for length, prompt, right in zip(self.lengths, prompts, self.right, strict=True):
            groups[f"<={-(-length // 250) * 250}"].append(right)
            groups[prompt.kind].append(right)
        parts = [f"{name} {sum(r)}/{len(r)}" for name, r in groups.items()]
        return f"right {sum(self.right)}/{len(self.right)}, ended {sum(self.ended)}; " + ", ".join(parts)


@torch.no_grad()
def greedy(model: DemoModel, tokenizer: Any, prompts: Sequence[str], steps: int) -> list[list[int]]:
    """The ids that greedy decoding adds to each prompt, up to and with the end token (id 0)."""
    device = model.embed_tokens.weight.device
    rows = [tokenizer.encode(prompt).ids for prompt in prompts]
    lengths = torch.tensor([len(row) for row in rows], device=device)
    tokens = torch.zeros(len(rows), int(lengths.max()) + steps, dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    tokens = tokens.to(device)
    index = torch.arange(len(rows), device=device)
    done = torch.zeros(len(rows), dtype=torch.bool, device=device)
    said = [[] for _ in rows]
    for step in range(steps):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            hidden = model(tokens[:, : int(lengths.max()) + step])
            logits = model.logits(hidden[index, lengths + step - 1])
        new = logits.float().argmax(-1)
        tokens[index, lengths + step] = new
        for i, (token, over) in enumerate(zip(new.tolist(), done.tolist(), strict=True)):
            if not over:
                said[i].append(token)
        done |= new == 0
        if bool(done.all()):
            break
    return said


def answer(model: DemoModel, tokenizer: Any, prompts: Sequence[RecallPrompt], steps: int = 16) -> Answers:
    """Greedy answers to recall prompts."""
    said = greedy(model, tokenizer, [prompt.prompt for prompt in prompts], steps)
    texts = [tokenizer.decode(ids) for ids in said]
    return Answers(
        [len(tokenizer.encode(prompt.prompt).ids) for prompt in prompts],
        texts,
        [prompt.is_right(text) for prompt, text in zip(prompts, texts, strict=True)],
        [bool(ids) and ids[-1] == 0 for ids in said],
    )
