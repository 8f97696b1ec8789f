"""The texts the demo model is trained and tried on: the same from a seed, answerable, and unseen where they must be."""

from __future__ import annotations

import re
from collections import defaultdict
from random import Random

import pytest

from stoker.demo_model import fact_tokens, load_tokenizer, recall_prompts, story_chats, story_prompts
from stoker.demo_model.recall import FactMaker, recall_prompt
from stoker.demo_model.stories import filler, make_story
from stoker.demo_model.words import (
    HE_ENDINGS,
    NAME_MIDDLES,
    NAME_STARTS,
    SHE_ENDINGS,
    is_held_out,
    person,
    town,
)

PERSON = re.compile(
    rf"\b(?:{'|'.join(NAME_STARTS)})(?:{'|'.join(NAME_MIDDLES)})(?:{'|'.join([*SHE_ENDINGS, *HE_ENDINGS])})\b"
)


def core(answer: str) -> str:
    """An answer without its article."""
    return re.sub(r"^(the|an?) ", "", answer)


def test_same_seed_same_texts() -> None:
    """A failure seen with a seed can be seen again; another seed gives other texts."""
    assert recall_prompts(6, seed=3, max_tokens=200) == recall_prompts(6, seed=3, max_tokens=200)
    assert recall_prompts(6, seed=3, max_tokens=200) != recall_prompts(6, seed=4, max_tokens=200)
    assert [make_story(Random(5)).text for _ in range(3)] == [make_story(Random(5)).text] * 3
    assert story_prompts(4, seed=1) == story_prompts(4, seed=1)
    assert story_chats(4, seed=1) == story_chats(4, seed=1)


def test_names_of_training_and_of_prompts_are_disjoint() -> None:
    """What the prompts ask for cannot have been learnt by heart."""
    rng = Random(7)
    for unseen in (False, True):
        for _ in range(500):
            assert is_held_out(person(rng, unseen).name) == unseen
            assert is_held_out(town(rng, unseen)) == unseen
        answers = [fact.answer for _ in range(3) for fact in FactMaker(rng, unseen).facts()]
        assert len(answers) > 500
        assert all(is_held_out(core(answer)) == unseen for answer in answers)
    names = {name for _ in range(200) for name in PERSON.findall(make_story(rng).text)}
    assert len(names) > 200
    assert not any(is_held_out(name) for name in names)
    fresh = {name for prompt in recall_prompts(10, seed=1) for name in PERSON.findall(prompt.prompt)}
    assert len(fresh) > 50
    assert all(is_held_out(name) for name in fresh)


def test_each_question_has_at_least_fifty_possible_answers() -> None:
    """So that guessing from the kind of question cannot reach an accuracy worth a test."""
    rng = Random(2)
    answers: dict[str, set[str]] = defaultdict(set)
    for _ in range(30):
        for fact in FactMaker(rng, unseen=True).facts():
            answers[fact.kind].add(fact.answer)
    assert len(answers) == 9
    assert {kind: len(some) for kind, some in answers.items() if len(some) < 50} == {}


def test_questions_of_one_context_differ_and_the_statement_holds_the_answer() -> None:
    """A context that told two things about one key would make a right answer a matter of luck."""
    for seed in range(5):
        facts = list(FactMaker(Random(seed), unseen=True).facts())
        assert len({fact.question for fact in facts}) == len(facts)
        assert len({fact.statement for fact in facts}) == len(facts)
        for fact in facts:
            assert core(fact.answer).lower() in fact.statement.lower()
            assert fact.answer in fact.reply


def test_prompts_fit_their_length_and_say_where_the_fact_is() -> None:
    """Tests that move KV blocks rely on the place of the fact; engines rely on the length."""
    tokenizer = load_tokenizer()
    prompts = recall_prompts(40, seed=11, tokenizer=tokenizer)
    lengths = [len(tokenizer.encode(prompt.prompt).ids) for prompt in prompts]
    assert max(lengths) <= 1000
    assert max(lengths) > 950
    assert min(lengths) < 80
    for prompt in prompts:
        statement = prompt.prompt[prompt.fact_start : prompt.fact_end]
        assert core(prompt.answer).lower() in statement.lower()
        assert prompt.prompt.lower().count(core(prompt.answer).lower()) >= 1
        span = fact_tokens(prompt, tokenizer)
        ids = tokenizer.encode(prompt.prompt).ids
        assert tokenizer.decode([ids[i] for i in span]).strip() == statement
        assert prompt.message.endswith("\n" + prompt.question)
        assert "Answer:" not in prompt.message


def test_the_fact_stands_at_a_uniform_depth() -> None:
    """A model that remembers only the end of its prompt must not look good."""
    rng = Random(13)
    depths = [recall_prompt(rng, 400, lambda text: len(text) // 4).depth for _ in range(500)]
    fifths = [sum(low <= 5 * depth < low + 1 for depth in depths) for low in range(5)]
    assert min(fifths) > 65
    assert max(fifths) < 140


def test_only_the_whole_answer_is_right() -> None:
    """An answer with something before or behind it, or only a part of it, does not count."""
    prompt = recall_prompts(1, seed=0, max_tokens=80)[0]
    assert prompt.is_right(f" {prompt.answer}")
    assert prompt.is_right(f" {prompt.answer}\nQuestion: and then?")
    assert not prompt.is_right(f" not {prompt.answer}")
    assert not prompt.is_right(f" {prompt.answer} and more")
    assert not prompt.is_right(f" {prompt.answer[:-1]}")
    assert not prompt.is_right("")


def test_stories_leave_no_slot_open() -> None:
    """A misspelt slot or a sentence that begins small would be learnt and told by the model."""
    rng = Random(17)
    for _ in range(400):
        story = make_story(rng, about="fox")
        assert not set("{}_") & set(story.text + story.opening + "".join(story.topics))
        assert story.text.startswith(story.opening)
        assert not re.search(r'(^|[.!?] )"?[a-z]', story.text)
        assert story.text.rstrip('"')[-1] in ".!?"
        assert "fox" in story.opening
        assert filler(rng)[0].isupper()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"count": 0}, "count is 0"),
        ({"count": 1, "min_tokens": 10}, "min_tokens is 10"),
        ({"count": 1, "min_tokens": 300, "max_tokens": 200}, "max_tokens 200"),
    ],
)
def test_impossible_sizes_are_refused(arguments: dict[str, int], said: str) -> None:
    """Bad sizes are named instead of looping for ever."""
    with pytest.raises(ValueError, match=said):
        recall_prompts(**arguments, seed=0)
    with pytest.raises(ValueError, match="at least 50"):
        recall_prompt(Random(0), 49, len)
