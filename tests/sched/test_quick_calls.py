"""add, schedule and commit of the scheduler go a short way around the binding: other arguments and errors must not notice."""

from __future__ import annotations

import numpy as np
import pytest

from stoker import SamplingParams
from stoker.scheduler import Req, Scheduler, SchedulerConfig


def scheduler() -> Scheduler:
    return Scheduler(
        SchedulerConfig(
            num_blocks=64, block_size=16, max_num_seqs=4, max_num_batched_tokens=64, max_model_len=256
        )
    )


def req(rid: str) -> Req:
    return Req(rid, [1, 2, 3], SamplingParams(max_tokens=4, ignore_eos=True))


def test_every_way_of_calling_is_the_same() -> None:
    """By position and by name, with and without the clock, tokens as an array, a list or a strided view."""
    s = scheduler()
    s.add(req("a"))
    s.add(req=req("b"))
    s.add(req("c"), 5)
    s.add(req("d"), now=6)
    batch = s.schedule()
    assert batch is not None
    assert batch.num_sampled_rows == 4
    events = s.commit(batch, np.array([5, 6, 7, 8], np.int32))
    assert list(events.tokens) == [5, 6, 7, 8]
    events = s.commit(s.schedule(7), [9, 9, 9, 9])
    assert list(events.tokens) == [9] * 4
    events = s.commit(batch=s.schedule(now=8), result=np.arange(8, dtype=np.int32)[::2], now=9)
    assert list(events.tokens) == [0, 2, 4, 6]
    batch = s.schedule()
    assert list(s.commit(batch.batch_id, np.full(4, 3, np.int32)).tokens) == [3] * 4
    assert s.schedule() is None


def test_wrong_arguments_are_errors() -> None:
    """A TypeError that names the method, or the scheduler's own words; and the scheduler goes on."""
    s = scheduler()
    with pytest.raises(TypeError, match="add"):
        s.add("a")
    with pytest.raises(TypeError, match="schedule"):
        s.schedule("now")
    with pytest.raises(TypeError, match="commit"):
        s.commit()
    with pytest.raises(TypeError):
        Scheduler.schedule(object())
    s.add(req("a"))
    with pytest.raises(ValueError, match="'a'"):
        s.add(req("a"))
    batch = s.schedule()
    with pytest.raises(ValueError, match="takes 1 tokens"):
        s.commit(batch, np.zeros(2, np.int32))
    with pytest.raises(AttributeError):
        batch.num_sampled_rows = 3
    assert list(s.commit(batch, np.zeros(1, np.int32)).tokens) == [0]


def test_an_object_that_was_never_made_is_an_error() -> None:
    """__new__ without __init__ leaves nothing to call."""
    with pytest.raises(TypeError, match="__init__"):
        Scheduler.__new__(Scheduler).schedule()
    with pytest.raises(RuntimeError):
        scheduler().add(Req.__new__(Req))


def test_the_documentation_stays() -> None:
    """help() still shows the arguments."""
    assert "batch" in (Scheduler.commit.__doc__ or "")
