"""Small random checkpoints of every architecture, written by transformers, and transformers' own answers to
prompts.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

VOCAB = 1031

_COMMON = {
    "vocab_size": VOCAB,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "attention_dropout": 0.0,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}

# Head counts, dims, ties, windows and rope scalings are spread so that each shows up somewhere.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": (
        "Llama",
        {
            "hidden_size": 96,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "tie_word_embeddings": False,
            "rope_parameters": _LLAMA3,
        },
    ),
    "llama_linear": (
        "Llama",
        {
            "hidden_size": 64,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
        },
    ),
    "mistral": (
        "Mistral",
        {
            "hidden_size": 128,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 64,
            "sliding_window": 100,
            "tie_word_embeddings": False,
        },
    ),
    "qwen2": (
        "Qwen2",
        {
            "hidden_size": 128,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3": (
        "Qwen3",
        {
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 7,
            "num_key_value_heads": 1,
            "head_dim": 80,
            "tie_word_embeddings": True,
        },
    ),
}
ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")


def make_model(case: str, seed: int = 0, gain: float = 1.5) -> Any:
    """The transformers model of a case, float32. `gain` spreads the weights: at 1.5 the best logits lie
    well apart.
    """
    import transformers

    name, options = CASES[case]
    config = getattr(transformers, f"{name}Config")(**(_COMMON | options))
    config._attn_implementation = "sdpa"
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() == 2:
                std = gain * parameter.shape[1] ** -0.5
                if "embed_tokens" in key:
                    # A tied table of large entries would make every token predict itself.
                    std = 0.05 if config.tie_word_embeddings and gain > 1 else 1.0
                parameter.normal_(0.0, std, generator=generator)
            elif "norm" in key:
                spread = 0.5 if gain > 1 else 0.2
                parameter.uniform_(1 - spread, 1 + spread, generator=generator)
            else:
                parameter.normal_(0.0, 0.5, generator=generator)
    return model


def save(model: Any, folder: Path, **options: Any) -> Path:
    """Writes the model as an ordinary checkpoint folder."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder, **options)
    return folder


def prompts(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    """`count` prompts of lengths 1 to `longest` (both there), some with a beginning in common."""
    rng = random.Random(seed)
    lengths = [1, longest] + [rng.randint(1, longest) for _ in range(count - 2)]
    shared = [rng.randrange(VOCAB) for _ in range(longest)]
    result = []
    for i, length in enumerate(lengths):
        own = [rng.randrange(VOCAB) for _ in range(length)]
        keep = rng.randint(0, length - 1) if i % 3 == 0 else 0
        result.append(shared[:keep] + own[keep:])
    return result


def load(folder: Path, dtype: torch.dtype) -> Any:
    """What transformers reads from a checkpoint folder."""
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@dataclass(frozen=True)
class Reference:
    """transformers' greedy answers: token ids, and how far the best logit was ahead of the second, relative
    to it.
    """

    tokens: list[list[int]]
    margins: np.ndarray
    """[prompts, new tokens]"""


def generate(model: Any, prompt_ids: list[list[int]], new_tokens: int) -> Reference:
    """`model.generate`, greedy, all prompts in one batch padded on the left."""
    width = max(map(len, prompt_ids))
    ids = torch.zeros(len(prompt_ids), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompt_ids):
        ids[i, width - len(prompt) :] = torch.tensor(prompt)
        mask[i, width - len(prompt) :] = 1
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
    best = torch.stack([step.topk(2, dim=-1).values for step in out.logits], dim=1)  # [prompts, new, 2]
    margins = (best[..., 0] - best[..., 1]) / best[..., 0].abs()
    return Reference(out.sequences[:, width:].tolist(), margins.numpy())


@dataclass
class Agreement:
    """How answers compared with the reference."""

    equal: int = 0
    near_ties: int = 0
    """Answers that part from the reference where its two best logits were closer than the tolerance."""
    wrong: int = 0
    first_wrong: str = ""


def compare(reference: Reference, answers: list[list[int]], tolerance: float = 1e-4) -> Agreement:
    """Equal, except after a first place where the reference's two best logits are closer than `tolerance`."""
    result = Agreement()
    for i, (want, got) in enumerate(zip(reference.tokens, answers, strict=True)):
        if want == got:
            result.equal += 1
            continue
        place = next(
            (j for j, (a, b) in enumerate(zip(want, got, strict=False)) if a != b), min(len(want), len(got))
        )
        if place < len(want) and place < len(got) and reference.margins[i, place] < tolerance:
            result.near_ties += 1
        else:
            result.wrong += 1
            result.first_wrong = result.first_wrong or (
                f"prompt {i} parts at token {place}: want {want[place : place + 4]}, "
                f"got {got[place : place + 4]}, lengths {len(want)} and {len(got)}"
            )
    return result
