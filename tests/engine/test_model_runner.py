"""The runner by itself, on steps written by hand: pending tokens, seats, blocks, failures and every kind of
output row.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stoker.config import EngineConfig
from stoker.engine.build import build
from support import checkpoints
from support.hand_steps import HandScheduler, Row, Step

BLOCKS = 32
PROMPT = [7, 300, 12, 7, 999, 41, 3, 3, 8, 250, 77, 6, 1, 500, 2, 90, 14, 15, 16, 17]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """transformers' model and its checkpoint."""
    made = checkpoints.make_model("llama")
    return made, checkpoints.save(made, tmp_path_factory.mktemp("llama"))


@pytest.fixture
def steps(model: tuple[Any, Path]) -> HandScheduler:
    config = EngineConfig(
        str(model[1]),
        device="cpu",
        max_num_seqs=4,
        max_num_batched_tokens=128,
        num_kv_blocks=BLOCKS,
        swap_space=0.001,
    )
    return HandScheduler(build(config).runner)


def greedy(model: tuple[Any, Path], prompt: list[int], count: int) -> list[int]:
    return checkpoints.generate(model[0], [prompt], count).tokens[0]


def test_prefill_then_decodes_of_pending_tokens(model: tuple[Any, Path], steps: HandScheduler) -> None:
    """A token that only the device knows is taken from the seat; two seats do not mix; blocks need no
    order.
    """
    other = PROMPT[5:9]
    want, want_other = greedy(model, PROMPT, 6), greedy(model, other, 6)
    first = steps.run(
        Step([Row(1, PROMPT), Row(3, other)], [(1, 0, 9), (1, 1, 4), (3, 0, 2)], [{"seat": 1}, {"seat": 3}])
    )
    got, got_other = [int(first.token_ids[0])], [int(first.token_ids[1])]
    for i in range(5):
        result = steps.run(Step([Row(1, [-2], len(PROMPT) + i), Row(3, [-4], len(other) + i)]))
        got.append(int(result.token_ids[0]))
        got_other.append(int(result.token_ids[1]))
    assert (got, got_other) == (want, want_other)


def test_a_prompt_in_chunks(model: tuple[Any, Path], steps: HandScheduler) -> None:
    """A chunk attends to what earlier chunks left in the cache; only the last one is read."""
    steps.run(Step([Row(1, PROMPT[:7], outs=[])], [(1, 0, 5)], [{"seat": 1}]))
    result = steps.run(Step([Row(1, PROMPT[7:], 7)], [(1, 1, 6)]))
    assert result.token_ids.tolist() == greedy(model, PROMPT, 1)


def test_a_nan_fails_its_row_only(model: tuple[Any, Path], steps: HandScheduler) -> None:
    """Spoiling one req's KV must not reach its neighbour, and the next step runs."""
    steps.run(
        Step(
            [Row(1, PROMPT), Row(2, PROMPT)],
            [(1, 0, 1), (1, 1, 2), (2, 0, 3), (2, 1, 4)],
            [{"seat": 1}, {"seat": 2}],
        )
    )
    steps.runner._transfers._pools[0].blocks[1].fill_(float("nan"))
    for i in range(2):
        result = steps.run(Step([Row(1, [-2], len(PROMPT) + i), Row(2, [-3], len(PROMPT) + i)]))
        assert result.row_status.tolist() == [1, 0]
    assert result.token_ids[1] == greedy(model, PROMPT, 3)[2]


def test_a_step_that_raises_is_failed_and_the_next_one_runs(
    model: tuple[Any, Path], steps: HandScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise MemoryError("no room")

    step = Step([Row(1, PROMPT)], [(1, 0, 1), (1, 1, 2)], [{"seat": 1}])
    with monkeypatch.context() as patch:
        patch.setattr(type(steps.runner._forward.model), "forward", broken)
        failed = steps.run(step, fails=True)
    assert (failed.status, failed.message, failed.batch_id) == ("failed", "MemoryError: no room", 1)
    assert steps.run(step).token_ids.tolist() == greedy(model, PROMPT, 1)


def test_scores_are_the_prompts_logprobs(model: tuple[Any, Path], steps: HandScheduler) -> None:
    """Score rows among sampled ones, more of them than are read at a time."""
    outs = [(1, token) for token in PROMPT[1:]] + [(0, -1)]
    result = steps.run(Step([Row(1, PROMPT, outs=outs)], [(1, 0, 1), (1, 1, 2)], [{"seat": 1}]))
    with torch.inference_mode():
        logprobs = model[0](torch.tensor([PROMPT])).logits[0].log_softmax(-1)
    want = logprobs[torch.arange(len(PROMPT) - 1), torch.tensor(PROMPT[1:])]
    torch.testing.assert_close(torch.from_numpy(result.scores[:-1]), want, rtol=1e-4, atol=1e-4)
    assert result.token_ids.tolist() == greedy(model, PROMPT, 1)


def test_logprobs_of_the_rows_that_ask(model: tuple[Any, Path], steps: HandScheduler) -> None:
    """The sampled token first, then the best; rows that ask for none have none."""
    seats = [{"seat": 1}, {"seat": 2, "num_logprobs": 3}, {"seat": 3, "num_logprobs": 0}]
    blocks = [(s, i, 2 * s + i) for s in (1, 2, 3) for i in (0, 1)]
    result = steps.run(Step([Row(s, PROMPT) for s in (1, 2, 3)], blocks, seats))
    with torch.inference_mode():
        best = model[0](torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1).topk(3)
    token = int(result.token_ids[0])
    assert result.logprob_indptr.tolist() == [0, 0, 4, 5]
    assert result.logprob_ids.tolist() == [token, *best.indices.tolist(), token]
    want = best.values[[0, 0, 1, 2, 0]]
    torch.testing.assert_close(torch.from_numpy(result.logprobs), want, rtol=1e-4, atol=1e-4)
    assert result.logprob_ranks.tolist() == [0, 1, 1]


def test_penalties_see_what_was_sampled(model: tuple[Any, Path], steps: HandScheduler) -> None:
    """A presence penalty over everything: no token comes twice, so each sampled one was counted in time."""
    # The context of a penalised seat comes with it, in seat_data; here it is empty but for the flag.
    seat = {"seat": 1, "flags": 1, "presence_penalty": 1e6}
    got = [int(steps.run(Step([Row(1, PROMPT)], [(1, 0, 1), (1, 1, 2)], [seat])).token_ids[0])]
    later = [Step([Row(1, [-2], len(PROMPT) + i)]) for i in range(8)]
    got += [int(steps.run(step).token_ids[0]) for step in later]
    assert len(set(got)) == len(got)


def test_blocks_move_with_their_meaning(model: tuple[Any, Path], steps: HandScheduler) -> None:
    """Out to the host, the device's block overwritten, back to another block: the tokens do not notice."""
    want = greedy(model, PROMPT, 3)
    steps.run(Step([Row(1, PROMPT)], [(1, 0, 1), (1, 1, 2)], [{"seat": 1}]))

    def move(ticket: int, source: tuple[int, int], destination: tuple[int, int]) -> dict[str, int]:
        names = ("source_tier", "source_block", "destination_tier", "destination_block")
        return {"ticket": ticket, **dict(zip(names, (*source, *destination), strict=True))}

    out = steps.run(Step([], transfers=[move(8, (0, 1), (1, 0)), move(9, (0, 2), (1, 3))]))
    assert out.finished_transfers == [8, 9]
    steps.runner._transfers._pools[0].blocks[1:3].fill_(float("nan"))
    back = Step([Row(1, [-2], len(PROMPT))], [(1, 0, 7), (1, 1, 5)])
    back.transfers = [move(10, (1, 0), (0, 7)), move(11, (1, 3), (0, 5))]
    result = steps.run(back)
    assert result.finished_transfers == [10, 11]
    copied = Step([Row(1, [-2], len(PROMPT) + 1)], [(1, 0, 20)], transfers=[move(12, (0, 7), (0, 20))])
    assert [int(result.token_ids[0]), int(steps.run(copied).token_ids[0])] == want[1:]
