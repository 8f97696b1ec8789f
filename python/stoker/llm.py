"""`LLM`: the offline API. Prompts in, answers out, driven on the caller's thread."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Generator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from stoker.assemble import Assembly
from stoker.config import EngineConfig
from stoker.interrupt import Interrupts
from stoker.outputs import RequestOutput
from stoker.progress import GenerateBar
from stoker.sampling_params import SamplingParams
from stoker.text import Prompt, TokenizedPrompt, Tokenizer, as_prompt_list, tokenize_prompts

if TYPE_CHECKING:
    from stoker.engine.engine import Engine

Messages: TypeAlias = Sequence[Mapping[str, Any]]
Params: TypeAlias = "SamplingParams | Sequence[SamplingParams] | None"


class LLM:
    """A model and the engine that runs it.

    `model` is "stoker-demo", a checkpoint folder or a hub id; further options are the fields of `EngineConfig`
    (`max_num_seqs=`, `dtype=`, `enable_prefix_caching=`, ...). Raises ValueError, with what was given and what is
    allowed, for a bad option or a path that is no checkpoint. Not for several threads at once: that is `AsyncLLM`.
    """

    def __init__(self, model: str, **options: Any) -> None:
        config = EngineConfig.from_kwargs(model, **options)
        from stoker.engine.engine import Engine  # imports torch

        self._set_up(Engine(config))

    @classmethod
    def from_engine(cls, engine: Engine, tokenizer: Tokenizer | None = None) -> LLM:
        """Around an engine that was built already; its tokenizer is read from the checkpoint if none is given."""
        llm = cls.__new__(cls)
        llm._set_up(engine, tokenizer)
        return llm

    def _set_up(self, engine: Engine, tokenizer: Tokenizer | None = None) -> None:
        self.engine = engine
        self.tokenizer = tokenizer or load_tokenizer(engine)
        self._next_rid = itertools.count()
        self._busy = False

    # --- what users call ---------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: Params = None,
        *,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Answers all prompts; one RequestOutput each, in their order.

        A prompt is a string, a list of token ids, or `{"prompt": ...}` / `{"prompt_token_ids": ...}`; a list may mix
        them. `sampling_params` is one for all or one for each; None: what the checkpoint's generation_config.json
        recommends. `use_tqdm` shows a bar with tokens a second where stderr is a terminal.

        Raises ValueError before anything starts if any prompt or parameter is bad; the message names its index.
        Ctrl-C ends all requests of this call and raises KeyboardInterrupt; the LLM stays usable.
        """
        listed, _ = as_prompt_list(prompts)
        return self._collect(tokenize_prompts(listed, self.tokenizer), sampling_params, use_tqdm, priority)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: Params = None,
        *,
        use_tqdm: bool = True,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answers one conversation, or several: lists of `{"role": ..., "content": ...}`.

        The checkpoint's chat template makes the prompt (`chat_template`: another one, by name or as text).
        `continue_final_message=True` goes on with the last message and needs `add_generation_prompt=False`.
        """
        template = None if self.tokenizer is None else self.tokenizer.chat_template
        if self.tokenizer is None or (template is None and chat_template is None):
            raise ValueError("this model has no chat template; give chat_template= or use generate")
        if template is None:
            from stoker.text import ChatTemplate

            template = ChatTemplate(chat_template or "", self.tokenizer.special_tokens)
        chats: Sequence[Any] = [messages] if _is_one_chat(messages) else messages
        texts = []
        for index, chat in enumerate(chats):
            try:
                text = template.render(
                    chat,
                    tools=tools,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=continue_final_message,
                    chat_template=chat_template,
                    **(chat_template_kwargs or {}),
                )
            except ValueError as error:
                raise ValueError(f"conversations[{index}]: {error}") from None
            texts.append(text)
        requests = tokenize_prompts(texts, self.tokenizer, add_special_tokens=False)
        return self._collect(requests, sampling_params, use_tqdm, None)

    def stream(
        self, prompts: Prompt | Sequence[Prompt], sampling_params: Params = None
    ) -> Generator[tuple[int, RequestOutput], None, None]:
        """As `generate`, but yields `(index of the prompt, RequestOutput as it stands)` whenever there is news.

        `finished` marks a prompt's last. Leaving the loop early ends what still runs.
        """
        listed, _ = as_prompt_list(prompts)
        assemblies = self._add(tokenize_prompts(listed, self.tokenizer), sampling_params, None, stream=True)
        stream = self._stream(assemblies)
        next(stream)
        return stream  # type: ignore[return-value]  # None comes once, above

    def get_default_sampling_params(self) -> SamplingParams:
        """What `generate` uses when it is given none."""
        return default_sampling_params(self.engine)

    def get_tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer; ValueError with `skip_tokenizer_init=True`."""
        if self.tokenizer is None:
            raise ValueError("there is no tokenizer: skip_tokenizer_init=True")
        return self.tokenizer

    def close(self) -> None:
        """Gives the memory back and joins the engine's threads. Safe to call twice."""
        self.engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- how it is done ----------------------------------------------------------------------------------------

    def _collect(
        self,
        requests: Sequence[TokenizedPrompt],
        params: Params,
        use_tqdm: bool,
        priority: Sequence[int] | None,
    ) -> list[RequestOutput]:
        # Who looks at nothing on the way gets each answer at its end, which leaves the loop alone meanwhile.
        assemblies = self._add(requests, params, priority, stream=use_tqdm and sys.stderr.isatty())
        with GenerateBar(len(assemblies), shown=use_tqdm) as bar:
            for assembly, new_tokens in self._drive(assemblies):
                bar.advance(new_tokens, len(assembly.prompt_token_ids) if assembly.finished else None)
        return [assembly.output() for assembly in assemblies]

    def _stream(self, assemblies: list[Assembly]) -> Generator[tuple[int, RequestOutput] | None, None, None]:
        """Yields None first: a generator that was started ends its requests also if nobody goes on with it."""
        self._busy = True
        places = {assembly.rid: index for index, assembly in enumerate(assemblies)}
        try:
            yield None
            for assembly, _ in self._drive(assemblies):
                yield places[assembly.rid], assembly.output()
        finally:
            self._busy = False
            self._abandon([assembly for assembly in assemblies if not assembly.finished])

    def _add(
        self,
        requests: Sequence[TokenizedPrompt],
        params: Params,
        priority: Sequence[int] | None,
        *,
        stream: bool,
    ) -> list[Assembly]:
        """Hands all requests to the engine, or none: nothing runs before the last of them was accepted."""
        if self._busy:
            raise RuntimeError("this LLM is in use; finish or close the stream first, or use AsyncLLM")
        each = params_for_each(params, len(requests), self.engine)
        if priority is not None and len(priority) != len(requests):
            raise ValueError(f"priority has {len(priority)} entries for {len(requests)} prompts")
        assemblies: list[Assembly] = []
        try:
            for index, (request, own) in enumerate(zip(requests, each, strict=True)):
                try:
                    own = check_params(own, self.tokenizer)
                    rid = str(next(self._next_rid))
                    self.engine.add_request(
                        rid,
                        request.token_ids,
                        own,
                        priority=priority[index] if priority else 0,
                        cache_salt=request.cache_salt,
                        stream=stream or bool(own.stop),
                    )
                except ValueError as error:
                    raise ValueError(f"prompts[{index}]: {error}") from None
                assemblies.append(Assembly(rid, request.text, request.token_ids, own, self.tokenizer))
        except BaseException:
            self._abandon(assemblies)
            raise
        return assemblies

    def _drive(self, assemblies: list[Assembly]) -> Generator[tuple[Assembly, int], None, None]:
        """Steps the engine until all have ended; yields each that has news, with the number of its new tokens."""
        engine, running = self.engine, {assembly.rid: assembly for assembly in assemblies}
        unfinished = len(running)
        self._busy = True
        try:
            with Interrupts() as interrupts:
                while unfinished:
                    for news in engine.step():
                        assembly = running.get(news.rid)
                        if assembly is None or assembly.finished:
                            continue
                        before = assembly.num_output_tokens
                        if assembly.update(news):
                            engine.abort(news.rid, news.index)
                        unfinished -= assembly.finished
                        yield assembly, assembly.num_output_tokens - before
                    interrupts.check()
        finally:
            self._busy = False
            self._abandon([assembly for assembly in assemblies if not assembly.finished])

    def _abandon(self, assemblies: Iterable[Assembly]) -> None:
        """Ends requests nobody waits for, and runs the engine until it knows of none."""
        for assembly in assemblies:
            self.engine.abort(assembly.rid)
        while self.engine.has_unfinished():
            self.engine.step()


# --- shared with AsyncLLM ------------------------------------------------------------------------------------------


def load_tokenizer(engine: Engine) -> Tokenizer | None:
    """The tokenizer that an engine's configuration names."""
    config = engine.config
    if config.skip_tokenizer_init:
        return None
    if config.tokenizer is not None:
        tokenizer = Tokenizer.from_pretrained(
            config.tokenizer, revision=config.revision, download_dir=config.download_dir
        )
        engine.use_tokenizer(tokenizer.backend.to_str)
        return tokenizer
    return Tokenizer.from_folder(engine.model_path)


def default_sampling_params(engine: Engine) -> SamplingParams:
    """What the checkpoint's authors recommend."""
    return SamplingParams(**engine.generation_config.defaults)


def check_params(params: SamplingParams, tokenizer: Tokenizer | None) -> SamplingParams:
    """What SamplingParams cannot know by itself: stop strings are found in text, bad words are tokens."""
    if params.stop and tokenizer is None:
        raise ValueError(f"stop={params.stop!r} needs the tokenizer, which skip_tokenizer_init=True left out")
    if params.stop and not params.detokenize:
        raise ValueError(f"stop={params.stop!r} needs detokenize=True")
    if params.bad_words and tokenizer is None:
        raise ValueError("bad_words needs the tokenizer, which skip_tokenizer_init=True left out")
    return params if tokenizer is None else params.with_word_tokens(tokenizer.word_tokens)


def params_for_each(params: Params, count: int, engine: Engine) -> list[SamplingParams]:
    """One SamplingParams for each prompt."""
    if params is None:
        params = default_sampling_params(engine)
    if isinstance(params, SamplingParams):
        return [params] * count
    if not isinstance(params, Sequence) or not all(isinstance(own, SamplingParams) for own in params):
        raise ValueError(f"sampling_params must be a SamplingParams or a list of them, got {params!r}")
    if len(params) != count:
        raise ValueError(
            f"sampling_params has {len(params)} entries for {count} prompts; give one, or one for each"
        )
    return list(params)


def _is_one_chat(messages: Messages | Sequence[Messages]) -> bool:
    return not messages or isinstance(messages[0], Mapping)
