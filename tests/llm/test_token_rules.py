"""allowed_token_ids and bad_words with the demo model: what is ruled out never comes, and nobody else's answer changes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from stoker import LLM, SamplingParams
from stoker.engine.token_rules import TokenRules

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("stoker-demo", max_num_seqs=16) as made:
        yield made


def allowed_bits(mask: np.ndarray) -> set[int]:
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist())


def test_rules_as_masks() -> None:
    """Single tokens always, the last of several where the others stand before it, however the tokens come in."""
    rules = TokenRules(None, [(3,), (5, 6, 7), (6, 8)], 40)
    mask, tail = np.zeros(2, np.int32), list[int]()
    everything = set(range(64))
    assert rules.apply(mask, tail, [], alone=True)
    assert allowed_bits(mask) == everything - {3}
    assert rules.apply(mask, tail, [1, 5], alone=True)
    assert allowed_bits(mask) == everything - {3}
    assert rules.apply(mask, tail, [6], alone=True)
    assert allowed_bits(mask) == everything - {3, 7, 8}
    mask[:] = [0x180, 0]  # a grammar that leaves 7 and 8
    assert not rules.apply(mask, tail, [], alone=False)
    assert TokenRules([3, 33], [(3,)], 40).apply(mask, [], [], alone=True)
    assert allowed_bits(mask) == {33}


def test_only_allowed_tokens_come(llm: LLM) -> None:
    """For every sibling, with and without an end-of-sequence token among them; a neighbour without rules is not touched."""
    assert llm.tokenizer is not None
    allowed = llm.tokenizer.encode(" the red house was")
    free = SamplingParams(seed=7, max_tokens=20)
    (alone,) = llm.generate([PROMPT], free, use_tqdm=False)
    bound = SamplingParams(seed=1, n=3, max_tokens=20, allowed_token_ids=allowed)
    held, beside = llm.generate([PROMPT] * 2, [bound, free], use_tqdm=False)
    assert all(set(one.token_ids) <= set(allowed) for one in held.outputs)
    assert {one.finish_reason for one in held.outputs} == {"length"}
    assert beside.outputs[0].token_ids == alone.outputs[0].token_ids
    eos = llm.engine.eos_token_ids[0]
    only_end = SamplingParams(allowed_token_ids=[eos], max_tokens=20)
    (ended,) = llm.generate([PROMPT], only_end, use_tqdm=False)
    assert ended.outputs[0].finish_reason == "stop"


def test_bad_words_do_not_come(llm: LLM) -> None:
    """What greedy decoding would say next is ruled out, word by word: single tokens and words of several."""
    (plain,) = llm.generate([PROMPT], SamplingParams(temperature=0, max_tokens=30), use_tqdm=False)
    ids = list(plain.outputs[0].token_ids)
    pair, single = ids[3:5], ids[10]
    assert llm.tokenizer is not None
    word = plain.outputs[0].text.split()[2]
    params = SamplingParams(
        temperature=0, max_tokens=30, bad_words=[word], bad_words_token_ids=[pair, [single]]
    )
    (out,) = llm.generate([PROMPT], params, use_tqdm=False)
    got = list(out.outputs[0].token_ids)
    assert got != ids
    assert single not in got
    assert pair not in [got[i : i + 2] for i in range(len(got))]
    for spelled in llm.tokenizer.word_tokens(word):
        assert spelled not in [got[i : i + len(spelled)] for i in range(len(got))]


def test_rules_beside_a_grammar(llm: LLM) -> None:
    """Both hold; where they leave nothing the request ends with an error that says so."""
    assert llm.tokenizer is not None
    choice = {"choice": ["yes", "no"]}
    words = [tuple(ids) for ids in llm.tokenizer.word_tokens("yes")]
    begins = [(ids[0],) for ids in words]
    for seed in range(4):
        params = SamplingParams(seed=seed, structured_outputs=choice, bad_words_token_ids=[*words, *begins])
        (out,) = llm.generate([PROMPT], params, use_tqdm=False)
        assert out.outputs[0].text == "no" or out.outputs[0].text.startswith("y")
    nothing = SamplingParams(allowed_token_ids=[5], bad_words_token_ids=[(5,)])
    (failed,) = llm.generate([PROMPT], nothing, use_tqdm=False)
    assert failed.outputs[0].finish_reason == "error"
    assert "leave no token" in str(failed.outputs[0].error)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"allowed_token_ids": []}, "at least one"),
        ({"allowed_token_ids": [10**6]}, "outside the vocabulary"),
        ({"allowed_token_ids": [-1]}, "0 or more"),
        ({"bad_words": [""]}, "non-empty"),
        ({"bad_words_token_ids": [[]]}, "at least one"),
        ({"bad_words_token_ids": [[10**6]]}, "outside the vocabulary"),
    ],
)
def test_what_is_refused(llm: LLM, fields: dict[str, object], words: str) -> None:
    """Before anything runs, with what was given and what is allowed."""
    with pytest.raises(ValueError, match=words):
        llm.generate([PROMPT], SamplingParams(**fields), use_tqdm=False)
