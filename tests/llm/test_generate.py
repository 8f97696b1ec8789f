"""`LLM.generate` and its siblings on a scripted engine: forms of prompts, ends of answers, refusals, Ctrl-C."""

from __future__ import annotations

import os
import signal
from unittest import mock

import numpy as np
import pytest

from stoker import LLM, SamplingParams
from stoker.outputs import CompletionOutput
from stoker.text import Tokenizer
from support.fake_engine import FakeEngine

LONG = SamplingParams(max_tokens=40)


def only(llm: LLM, prompt: object, params: SamplingParams) -> CompletionOutput:
    (output,) = llm.generate(prompt, params)  # type: ignore[arg-type]
    assert output.finished
    (answer,) = output.outputs
    return answer


def test_every_form_of_prompt_and_any_mix(llm: LLM, letters: Tokenizer) -> None:
    """Strings, id lists, arrays and dicts are the same prompt; outputs come in the order of the prompts."""
    ids = letters.encode("hello")
    forms = [
        "hello",
        ids,
        tuple(ids),
        np.array(ids, np.int32),
        {"prompt": "hello"},
        {"prompt_token_ids": ids},
    ]
    outputs = llm.generate(forms, LONG)
    assert [output.outputs[0].text for output in outputs] == ["hello"] * len(forms)
    assert [output.prompt_token_ids for output in outputs] == [ids] * len(forms)
    assert [output.prompt for output in outputs] == ["hello", None, None, None, "hello", None]
    for form in forms:
        assert only(llm, form, LONG).text == "hello", "a single prompt needs no list"
    assert llm.generate([], LONG) == []
    mixed = llm.generate(["long prompt here", "b", ids], LONG)
    assert [output.outputs[0].text for output in mixed] == ["long prompt here", "b", "hello"]


def test_one_sampling_params_or_one_each(llm: LLM) -> None:
    """Each request has its own parameters; None takes the checkpoint's recommendation."""
    each = [SamplingParams(max_tokens=2), SamplingParams(max_tokens=3)]
    outputs = llm.generate(["abcdef", "abcdef"], each)
    assert [(o.outputs[0].text, o.outputs[0].finish_reason) for o in outputs] == [
        ("ab", "length"),
        ("abc", "length"),
    ]
    with pytest.raises(ValueError, match="2 entries for 1 prompts"):
        llm.generate(["a"], each)
    assert llm.get_default_sampling_params().temperature == 0.5
    assert llm.generate("abc")[0].outputs[0].text == "abc"


def test_the_ends_of_an_answer(llm: LLM, letters: Tokenizer) -> None:
    """EOS, a stop token, a stop string, a length: reason, text and tokens of each."""
    end = only(llm, "abc", LONG)
    assert (end.finish_reason, end.stop_reason, end.text) == ("stop", None, "abc")
    assert end.token_ids == [*letters.encode("abc"), 2], "EOS is a token of the answer, but no text"
    (b,) = letters.encode("b")
    end = only(llm, "abc", SamplingParams(max_tokens=40, stop_token_ids=(b,)))
    assert (end.finish_reason, end.stop_reason, end.text, end.token_ids[-1]) == ("stop", b, "a", b)
    end = only(
        llm, "abc", SamplingParams(max_tokens=40, stop_token_ids=(b,), include_stop_str_in_output=True)
    )
    assert end.text == "ab"
    end = only(llm, "abcd", SamplingParams(max_tokens=40, stop=("zz", "bc")))
    assert (end.finish_reason, end.stop_reason, end.text) == ("stop", "bc", "a")
    assert end.token_ids == letters.encode("abc"), "tokens up to the one that completed the stop string"
    end = only(llm, "abcd", SamplingParams(max_tokens=40, stop=("bc",), include_stop_str_in_output=True))
    assert end.text == "abc"
    end = only(llm, "ab", SamplingParams(max_tokens=7, ignore_eos=True, skip_special_tokens=False))
    assert (end.finish_reason, end.text) == ("length", "ab</s>ab</s>a")
    end = only(llm, "abab", SamplingParams(max_tokens=40, stop=("ab",), min_tokens=2))
    assert (end.text, end.stop_reason) == ("ab", "ab")


def test_a_stop_string_ends_the_request_in_the_engine(llm: LLM, engine: FakeEngine) -> None:
    """The engine is told at once, and what it sends late is dropped."""
    outputs = llm.generate(
        ["xxSTOPyyyyyyyyyyyyyyyyyyyyy", "abcdefghijkl"], SamplingParams(max_tokens=60, stop=("STOP",))
    )
    assert [output.outputs[0].text for output in outputs] == ["xx", "abcdefghijkl"]
    assert engine.aborted == [("0", 0)]
    assert engine.steps < 20


@pytest.mark.parametrize("tokens_a_step", [2, 5])
def test_several_tokens_a_step_change_nothing(llm: LLM, engine: FakeEngine, tokens_a_step: int) -> None:
    """Texts, tokens and ends are those of one token a step."""
    params = [LONG, SamplingParams(max_tokens=40, stop=("lo",)), SamplingParams(max_tokens=3)]
    one = [output.outputs[0] for output in llm.generate(["hello w"] * 3, params)]
    engine.tokens_a_step = tokens_a_step
    assert [output.outputs[0] for output in llm.generate(["hello w"] * 3, params)] == one


def test_n_answers(llm: LLM, engine: FakeEngine) -> None:
    """n answers of one prompt; a stop string in one ends that one only."""
    (output,) = llm.generate("ab", SamplingParams(n=3, max_tokens=40, stop=("b1",)))
    assert [(a.index, a.text, a.stop_reason) for a in output.outputs] == [
        (0, "ab", None),
        (1, "a", "b1"),
        (2, "ab2", None),
    ]
    assert engine.aborted == [("0", 1)]


def test_logprobs(llm: LLM, letters: Tokenizer) -> None:
    """For each token a dict by id, the token itself first, with its rank and its text."""
    answer = only(llm, "ab", SamplingParams(max_tokens=40, logprobs=2, stop=("b",)))
    assert answer.logprobs is not None
    assert len(answer.logprobs) == len(answer.token_ids) == 2
    (a, _) = letters.encode("ab")
    first = answer.logprobs[0]
    assert list(first) == [a, 0, 1]
    assert (first[a].logprob, first[a].rank, first[a].decoded_token) == (-0.5, 3, "a")
    assert (first[1].logprob, first[1].rank, first[1].decoded_token) == (-2.0, 2, "<s>")
    assert answer.cumulative_logprob == -1.0
    assert only(llm, "ab", LONG).logprobs is None


def test_without_text(engine: FakeEngine, llm: LLM, letters: Tokenizer) -> None:
    """`detokenize=False`, and an LLM without tokenizer: ids in, ids out, and clear refusals of what needs text."""
    answer = only(llm, "ab", SamplingParams(max_tokens=40, detokenize=False))
    assert (answer.text, answer.token_ids) == ("", [*letters.encode("ab"), 2])
    blind = LLM.from_engine(engine)  # type: ignore[arg-type]
    assert blind.tokenizer is None
    assert only(blind, [5, 6], LONG).token_ids == [5, 6, 2]
    for prompt, params, message in [
        ("text", LONG, "skip_tokenizer_init"),
        ([5], SamplingParams(stop=("x",)), "needs the tokenizer"),
    ]:
        with pytest.raises(ValueError, match=message):
            blind.generate(prompt, params)
    with pytest.raises(ValueError, match="chat template"):
        blind.chat([{"role": "user", "content": "x"}])
    with pytest.raises(ValueError, match="needs detokenize=True"):
        llm.generate("x", SamplingParams(stop=("x",), detokenize=False))


def test_chat(llm: LLM) -> None:
    """One conversation or several, through the checkpoint's template or another."""
    chat = [{"role": "user", "content": "hi"}]
    assert llm.chat(chat, LONG)[0].prompt == "u:hi|a:"
    outputs = llm.chat([chat, chat], LONG, add_generation_prompt=False)
    assert [output.outputs[0].text for output in outputs] == ["u:hi|", "u:hi|"]
    assert llm.chat(chat, LONG, chat_template="{{ messages[0].content }}!")[0].prompt == "hi!"
    with pytest.raises(ValueError, match=r"conversations\[1\]: messages\[0\] needs a 'role'"):
        llm.chat([chat, [{"content": "x"}]], LONG)


BAD = [
    ("", "empty string"),
    ([], "no tokens"),
    ({"prompt_token_ids": []}, "no tokens"),
    ({}, "needs 'prompt'"),
    ({"prompt": "x", "multi_modal_data": 1}, "unknown key 'multi_modal_data'"),
    ({"prompt": 3}, "'prompt' must be a string"),
    (7, "must be a list of ints"),
    ([1, 2.5], "must be ints, got 2.5"),
    ([1, "x"], "must be ints, got 'x'"),
    ([[1, 2], [3]], "must be ints"),
    ([1, 10**30], "outside the vocabulary"),
    ([1, 400], "outside the vocabulary"),
    ([-1], "outside the vocabulary"),
    ([3] * 64, "at most 63"),
    ("ab\ud83d", "lone surrogate"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[repr(bad)[:30] for bad, _ in BAD])
def test_one_bad_prompt_refuses_the_call_and_leaves_nothing_behind(
    llm: LLM, engine: FakeEngine, bad: object, message: str
) -> None:
    """A ValueError that names the index; no request of the call runs, and the next call works."""
    with pytest.raises(ValueError, match=rf"prompts\[2\].*{message}"):
        llm.generate(["good", [5, 6], bad, "good"], LONG)  # type: ignore[list-item]
    assert not engine.running
    assert only(llm, "fine", LONG).text == "fine"


def test_an_error_of_one_request_is_its_own(llm: LLM, engine: FakeEngine) -> None:
    """A request that fails says why; the others of the same call end as ever."""
    engine.fail_on = 399
    outputs = llm.generate([[5, 6], [399], [7]], LONG)
    assert [output.outputs[0].finish_reason for output in outputs] == ["stop", "error", "stop"]
    assert outputs[1].outputs[0].error == "NaN logits"
    assert outputs[0].outputs[0].error is None


@pytest.mark.parametrize(
    "params", [SamplingParams(max_tokens=5), SamplingParams(max_tokens=40, stop=("twenty",))]
)
def test_metrics_and_cached_tokens(llm: LLM, params: SamplingParams) -> None:
    """Each output has its account, also where a stop string ended it."""
    (output,) = llm.generate("a prompt of twenty-nine tokens", params)
    assert output.num_cached_tokens == 16
    metrics = output.metrics
    assert 0 < metrics.arrival_time <= metrics.first_token_time <= metrics.finished_time
    assert metrics.latency is not None
    assert metrics.time_to_first_token is not None
    assert metrics.latency >= metrics.time_to_first_token >= 0


def test_ctrl_c_ends_the_call_and_not_the_engine(llm: LLM, engine: FakeEngine) -> None:
    """KeyboardInterrupt comes between steps; nothing is left in the engine; the next call works; the handler is back."""
    step = engine.step

    def interrupted() -> object:
        if engine.steps == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step()

    with mock.patch.object(engine, "step", interrupted), pytest.raises(KeyboardInterrupt):
        llm.generate(["a" * 30, "b" * 30], LONG)
    assert not engine.running
    assert {rid for rid, _ in engine.aborted} == {"0", "1"}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert only(llm, "fine", LONG).text == "fine"


def test_a_handler_of_the_programs_own_is_left_alone(llm: LLM) -> None:
    """Programs that handle SIGINT themselves keep their handler."""
    seen = []
    previous = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    try:
        for _ in llm.stream("abc", LONG):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, previous)
    assert seen


def test_a_dead_engine_is_an_error_not_a_wait(engine: FakeEngine, letters: Tokenizer) -> None:
    """What the engine raises reaches the caller."""
    engine.die_at_step = 3
    dying = LLM.from_engine(engine, letters)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="device is lost"):
        dying.generate("a" * 30, LONG)


def test_stream_shows_the_answer_as_it_grows(llm: LLM) -> None:
    """Pieces of all requests as they come; what was yielded does not change later."""
    seen: dict[int, list[str]] = {0: [], 1: []}
    kept = []
    for index, output in llm.stream(["abc", "xy"], LONG):
        seen[index].append(output.outputs[0].text)
        kept.append((output, output.outputs[0].text))
    assert seen == {0: ["a", "ab", "abc", "abc"], 1: ["x", "xy", "xy"]}
    assert all(output.outputs[0].text == text for output, text in kept)


def test_a_stream_that_is_left_ends_its_requests(llm: LLM, engine: FakeEngine) -> None:
    """`break`, and a stream nobody ever asked for anything; meanwhile a second call is refused, not mixed in."""
    stream = llm.stream(["a" * 30, "b" * 30], LONG)
    next(stream)
    with pytest.raises(RuntimeError, match="in use"):
        llm.generate("x", LONG)
    stream.close()
    assert not engine.running
    untouched = llm.stream("a" * 30, LONG)
    assert engine.running
    untouched.close()
    assert not engine.running
    assert only(llm, "fine", LONG).text == "fine"
