"""The embedded model `stoker-demo`: where its checkpoint is, and fresh prompts to try it with.

Needs no torch. docs/demo_model.md says how the checkpoint was made.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from .chat import story_request
from .recall import RecallPrompt, recall_prompt
from .stories import make_story
from .words import pick

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "CHECKPOINT",
    "MODEL_NAME",
    "RecallPrompt",
    "fact_tokens",
    "load_tokenizer",
    "recall_prompts",
    "story_chats",
    "story_prompts",
]

MODEL_NAME = "stoker-demo"
CHECKPOINT = Path(__file__).resolve().parent / "checkpoint"


def load_tokenizer() -> Tokenizer:
    """The checkpoint's tokenizer, as the tokenizers library reads it."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))


def recall_prompts(
    count: int, seed: int, *, min_tokens: int = 50, max_tokens: int = 1000, tokenizer: Tokenizer | None = None
) -> list[RecallPrompt]:
    """`count` recall prompts whose lengths spread evenly over `min_tokens` to `max_tokens`, in random order.

    Their names and phrases are unseen in training, and the fact asked for stands at a uniformly random depth. No
    prompt is longer than `max_tokens`. Raises ValueError for sizes that no prompt can have.
    """
    if count < 1:
        raise ValueError(f"count is {count}; it must be at least 1")
    if not 50 <= min_tokens <= max_tokens:
        raise ValueError(
            f"min_tokens is {min_tokens} and max_tokens {max_tokens}; needed: 50 <= min_tokens <= max_tokens"
        )
    counter = tokenizer if tokenizer is not None else load_tokenizer()

    def count_tokens(text: str) -> int:
        return len(counter.encode(text, add_special_tokens=False).ids)

    rng = Random(seed)
    sizes = [min_tokens + (max_tokens - min_tokens) * i // max(1, count - 1) for i in range(count)]
    rng.shuffle(sizes)
    return [recall_prompt(rng, size, count_tokens) for size in sizes]


def fact_tokens(prompt: RecallPrompt, tokenizer: Tokenizer) -> range:
    """The token positions of `prompt.prompt` that state the fact asked for."""
    offsets = tokenizer.encode(prompt.prompt, add_special_tokens=False).offsets
    inside = [
        i for i, (start, end) in enumerate(offsets) if start < prompt.fact_end and end > prompt.fact_start
    ]
    return range(inside[0], inside[-1] + 1)


def story_prompts(count: int, seed: int) -> list[str]:
    """Openings of stories, a sentence each, with unseen names, for the model to go on with."""
    rng = Random(seed)
    return [make_story(rng, unseen=True).opening for _ in range(count)]


def story_chats(count: int, seed: int) -> list[list[dict[str, str]]]:
    """Chats of one message that asks for a story ("Tell me a story about a fox.")."""
    rng = Random(seed)
    return [
        [{"role": "user", "content": story_request(rng, pick(rng, make_story(rng, unseen=True).topics))}]
        for _ in range(count)
    ]
