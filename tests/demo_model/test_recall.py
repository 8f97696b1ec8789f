"""What the embedded model can do, as transformers runs it: recall by attention to the fact, stories that end, chats."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import jinja2
import pytest

from stoker.demo_model import (
    CHECKPOINT,
    RecallPrompt,
    fact_tokens,
    load_tokenizer,
    recall_prompts,
    story_prompts,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

BLOCK = 16
TOKENIZER = load_tokenizer()


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    # One thread: the model is so small that threads only wait for each other, above all on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield transformers.LlamaForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    torch.set_num_threads(threads)


def ids_of(text: str) -> list[int]:
    ids: list[int] = TOKENIZER.encode(text).ids
    return ids


def prefill(model: Any, ids: list[int]) -> Any:
    """The KV of all tokens but the last."""
    with torch.no_grad():
        return model.model(torch.tensor([ids[:-1]]), use_cache=True).past_key_values


def greedy(model: Any, ids: list[int], cache: Any, steps: int) -> list[int]:
    """Up to `steps` ids after `ids`, whose KV but for the last token is in `cache`; ends with the end token."""
    said: list[int] = []
    last = ids[-1]
    with torch.no_grad():
        for position in range(len(ids) - 1, len(ids) - 1 + steps):
            out = model(
                torch.tensor([[last]]), past_key_values=cache, position_ids=torch.tensor([[position]])
            )
            last = int(out.logits[0, -1].argmax())
            said.append(last)
            if last == 0:
                break
    return said


def say(model: Any, text: str, steps: int) -> tuple[str, bool]:
    """The greedy continuation of a text, and whether it came to an end by itself."""
    ids = ids_of(text)
    said = greedy(model, ids, prefill(model, ids), steps)
    return TOKENIZER.decode(said), said[-1] == 0


def recall(model: Any, prompts: list[RecallPrompt]) -> float:
    """The share of prompts answered rightly; every answer must end by itself."""
    answers = [say(model, prompt.prompt, 16) for prompt in prompts]
    assert [text for text, ended in answers if not ended] == []
    return sum(prompt.is_right(text) for prompt, (text, _) in zip(prompts, answers, strict=True)) / len(
        prompts
    )


def take_block(cache: Any, other: Any, block: int) -> None:
    """Put a block of another request's KV in the place of a block of this one, as a wrong block table would."""
    for layer, wrong in zip(cache.layers, other.layers, strict=True):
        for mine, theirs in ((layer.keys, wrong.keys), (layer.values, wrong.values)):
            length = mine[:, :, block * BLOCK : (block + 1) * BLOCK].shape[2]
            mine[:, :, block * BLOCK : block * BLOCK + length] = theirs[
                :, :, block * BLOCK : block * BLOCK + length
            ]


def recall_with_a_wrong_block(model: Any, prompts: list[RecallPrompt], fact: bool) -> float:
    """Recall when one block of each request, the one with the fact or one far from it, is another request's."""
    ids = [ids_of(prompt.prompt) for prompt in prompts]
    caches = [prefill(model, row) for row in ids]
    longest, second = sorted(range(len(ids)), key=lambda i: len(ids[i]))[:-3:-1]
    right = 0
    for i, prompt in enumerate(prompts):
        span = fact_tokens(prompt, TOKENIZER)
        block = (span[0] + span[-1]) // 2 // BLOCK
        if not fact:
            blocks = (len(ids[i]) - 1) // BLOCK
            block = (block + blocks // 2) % blocks
        cache = copy.deepcopy(caches[i])
        take_block(cache, caches[longest if i != longest else second], block)
        right += prompt.is_right(TOKENIZER.decode(greedy(model, ids[i], cache, 16)))
    return right / len(prompts)


def test_recall_of_fresh_prompts(model: Any) -> None:
    """The short form of the promise: 24 fresh prompts up to 1,000 tokens, at most one wrong."""
    assert recall(model, recall_prompts(24, seed=2024)) >= 23 / 24


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_recall_of_200_fresh_prompts(model: Any, seed: int) -> None:
    """The promise of the embedded model: at least 95% of 200 fresh prompts, whatever the seed."""
    assert recall(model, recall_prompts(200, seed=seed)) >= 0.95


def test_recall_depends_on_the_block_of_the_fact(model: Any) -> None:
    """With the fact's block swapped for another request's the answers go wrong; so wrong blocks show as wrong answers."""
    prompts = recall_prompts(16, seed=77, min_tokens=100, max_tokens=400)
    assert recall_with_a_wrong_block(model, prompts, fact=True) < 0.5
    assert recall_with_a_wrong_block(model, prompts, fact=False) > 0.7


@pytest.mark.long
def test_recall_depends_on_the_block_of_the_fact_at_all_lengths(model: Any) -> None:
    """The long form of the above: 100 prompts up to 1,000 tokens."""
    prompts = recall_prompts(100, seed=78, min_tokens=100)
    assert recall_with_a_wrong_block(model, prompts, fact=True) < 0.4
    assert recall_with_a_wrong_block(model, prompts, fact=False) > 0.8


def test_stories_end(model: Any) -> None:
    """A story that never ends would run every demo to its length limit."""
    for opening in story_prompts(2, seed=4):
        text, ended = say(model, opening, 450)
        assert ended
        assert len(text.split()) > 40


def chat(model: Any, *messages: str) -> str:
    """The reply to messages of user and assistant in turns, through the checkpoint's own template."""
    template = json.loads((CHECKPOINT / "tokenizer_config.json").read_text())["chat_template"]
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(messages)]
    text, ended = say(
        model, jinja2.Template(template).render(messages=turns, add_generation_prompt=True), 450
    )
    assert ended
    return text


def test_chats(model: Any) -> None:
    """The model takes part in chats: stories about what was asked for, small talk, questions in one and in two turns."""
    assert "fox" in chat(model, "Tell me a story about a fox.")
    assert chat(model, "Hello!").startswith("Hello!")
    prompts = recall_prompts(6, seed=5, max_tokens=200)
    replies = [chat(model, prompt.message) for prompt in prompts]
    assert sum(prompt.answer in reply for prompt, reply in zip(prompts, replies, strict=True)) >= 5
    facts = "The red glass key opens the old cellar. Tamrigard works as a clock mender. "
    assert chat(model, facts + "Which key opens the old cellar?") == "You need the red glass key."
    assert "clock mender" in chat(
        model,
        facts + "Which key opens the old cellar?",
        "You need the red glass key.",
        "What is the trade of Tamrigard?",
    )
