"""The engine as `LLM` and `AsyncLLM` drive it: model, KV memory, runner, scheduler and loop behind one
object, in token ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from stoker.config import EngineConfig, GenerationConfig, ModelConfig
from stoker.engine.output import EngineOutput, EngineStats

if TYPE_CHECKING:
    from stoker.sampling_params import SamplingParams


class Engine:
    """Builds everything that `config` names and runs requests of token ids.

    Two ways to drive it, never both at once:

    - on the caller's thread (`LLM`): `add_request(...)`, then `step()` until `has_unfinished()` is False;
    - with its own thread (`AsyncLLM`): `start()`, then `poll()`/`wait(timeout)` from one consumer,
      `add_request` and `abort` from any thread, `close()` at the end.

    Raises ValueError from the constructor for what `EngineConfig` or the checkpoint gets wrong.
    """

    config: EngineConfig
    """As given."""
    model_config: ModelConfig
    generation_config: GenerationConfig
    model_path: str
    """The checkpoint's folder on this machine (a hub id resolved): where the tokenizer's files are."""
    max_model_len: int
    """Prompt and output tokens of one request, at most."""
    eos_token_ids: tuple[int, ...]
    """Tokens that end an answer unless `ignore_eos`; add_request applies them by itself."""

    def __init__(self, config: EngineConfig) -> None:
        raise NotImplementedError

    def add_request(
        self,
        rid: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> None:
        """Puts a request in the inbox and returns at once.

        `prompt_token_ids` is a list of ints or an int32 array. Raises ValueError, and leaves nothing
        behind, for a prompt that is empty, too long for the model, or holds ids outside the vocabulary; for
        a request that could never fit the KV pool or the seats; and for a rid that is still running.
        `params.max_tokens=None` means as far as the model's length allows. `params.stop` (strings) is not
        looked at here: whoever holds the text calls `abort` when it sees one.
        """
        raise NotImplementedError

    def abort(self, rid: str, index: int | None = None) -> None:
        """Ends a request (or one of its n answers) as soon as may be; its last EngineOutput says `abort`.
        Any thread.
        """
        raise NotImplementedError

    def step(self) -> list[EngineOutput]:
        """One turn of the loop on this thread: receive, schedule, launch, collect. What is new, possibly
        nothing.
        """
        raise NotImplementedError

    def has_unfinished(self) -> bool:
        """True while a request was added whose end was not handed out yet."""
        raise NotImplementedError

    def start(self) -> None:
        """Runs the loop on a thread of its own until `close()`."""
        raise NotImplementedError

    def poll(self) -> list[EngineOutput]:
        """What is new, without waiting."""
        raise NotImplementedError

    def wait(self, timeout: float) -> list[EngineOutput]:
        """What is new, waiting at most `timeout` seconds (without the GIL) for something to come."""
        raise NotImplementedError

    def stats(self) -> EngineStats:
        """A look at queue, seats and KV now."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends what still runs, joins the threads and gives the memory back. Safe to call twice."""
        raise NotImplementedError

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
