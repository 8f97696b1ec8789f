"""Views of a step's sections: what is kept of them has an end, however many sizes of steps come by."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from stoker.engine.step_buffer import TensorViews
from stoker.layers.context import Kept


def test_kept_holds_the_newest_and_no_more() -> None:
    kept: Kept[int, str] = Kept()
    for size in range(2000):
        assert kept.keep(size, str(size)) == str(size)
    assert len(kept) == 512
    assert min(kept) == 2000 - 512


def test_views_of_every_size_do_not_pile_up() -> None:
    """A server that runs for days sees steps of every size; each kept view is half a KB for good."""
    room = 4000  # elements a section
    sections = {name: (4 * room * place, room, 4) for place, name in enumerate(_SECTIONS)}
    memory = torch.randint(256, (4 * room * len(_SECTIONS),), dtype=torch.uint8)
    layout = SimpleNamespace(nbytes=memory.numel(), sections=sections)
    views = TensorViews(memory, layout, 1)
    first = views.tokens(7)[0].clone()
    for size in range(1, 2000):
        assert views.tokens(size)[0].shape == (size,)
        assert views.outs(size, 2 * size)[0].shape == (size,)
    assert len(views._tokens) == len(views._outs) == 512
    assert torch.equal(views.tokens(7)[0], first)


_SECTIONS = (
    "token_ids",
    "positions",
    "slots",
    "row_seat",
    "row_indptr",
    "row_kv_len",
    "out_token",
    "out_seat",
    "out_position",
    "seat_changes",
)
