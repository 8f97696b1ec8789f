"""The bodies of the OpenAI endpoints as typed structs, with vLLM's extra fields, and how they become SamplingParams."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from stoker.sampling_params import SamplingParams
from stoker.server.errors import bad_request
from stoker.server.settings import Limits
from stoker.server.structured import structured_outputs

MAX_TOKEN_ID = 2**31 - 1

Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]


class StreamOptions(msgspec.Struct):
    """When usage is sent in a stream."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class Sampling(msgspec.Struct, kw_only=True):
    """What completions, chat and responses have in common."""

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    n: int | None = None
    seed: Int64 | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    priority: Int32 = 0
    cache_salt: str | None = None
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_json_object: bool | None = None
    guided_whitespace_pattern: str | None = None
    request_id: str | None = None
    truncate_prompt_tokens: int | None = None
    """Keep this many of the prompt's last tokens; -1: all."""
    prompt_logprobs: int | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    # Known from vLLM and not built: an error that says so, never ignored.
    use_beam_search: bool = False
    logits_processors: list[Any] | None = None


class CompletionRequest(Sampling, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[str | int | list[int]]
    """A text, token ids, or a list of either (as OpenAI has it)."""
    max_tokens: int | None = 16
    echo: bool | None = False
    logprobs: int | None = None
    best_of: int | None = None
    suffix: str | None = None
    add_special_tokens: bool = True


class ChatRequest(Sampling, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    include_reasoning: bool = True
    echo: bool = False
    documents: list[dict[str, Any]] | None = None
    chat_template: str | None = None
    functions: list[dict[str, Any]] | None = None
    modalities: list[str] | None = None


class EmbeddingsRequest(msgspec.Struct, kw_only=True):
    """POST /v1/embeddings."""

    input: str | list[str | int | list[int]]
    """A text, token ids, or a list of either."""
    model: str | None = None
    encoding_format: str = "float"
    dimensions: int | None = None
    user: str | None = None
    priority: Int32 = 0
    cache_salt: str | None = None
    truncate_prompt_tokens: int | None = None
    add_special_tokens: bool = True


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """POST /tokenize: a prompt, or messages through the chat template."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    return_token_strs: bool = False


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[int]


def sampling_params(
    body: Sampling,
    limits: Limits,
    *,
    max_tokens: int | None,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
    skip_special_tokens: bool | None = None,
    defaults: dict[str, Any],
) -> SamplingParams:
    """The SamplingParams of a body. `defaults` come from the checkpoint's generation_config. 400 for what is not allowed."""
    for name in ("use_beam_search", "logits_processors"):
        if getattr(body, name):
            raise bad_request(f"{name} is not built here", name)
    n = 1 if body.n is None else body.n
    if not 1 <= n <= limits.max_n:
        raise bad_request(f"n={n}: 1 to {limits.max_n} are allowed", "n")
    stop = [body.stop] if isinstance(body.stop, str) else list(body.stop or ())
    bad_words = body.bad_words or []
    for name, texts, most in (
        ("stop", stop, limits.max_stop_strings),
        ("bad_words", bad_words, limits.max_bad_words),
    ):
        if len(texts) > most:
            raise bad_request(f"{len(texts)} {name} strings: at most {most} are allowed", name)
        if any(len(one) > limits.max_stop_chars for one in texts):
            raise bad_request(
                f"a string of {name} is longer than the {limits.max_stop_chars} characters allowed", name
            )
    if prompt_logprobs is None:
        prompt_logprobs = body.prompt_logprobs
    for name, count in (("logprobs", logprobs), ("prompt_logprobs", prompt_logprobs)):
        if count is not None and not 0 <= count <= limits.max_logprobs:
            raise bad_request(f"{name}={count}: 0 to {limits.max_logprobs} are allowed", name)
    if len(body.stop_token_ids or ()) > limits.max_stop_token_ids:
        raise bad_request(
            f"{len(body.stop_token_ids or ())} stop_token_ids: at most {limits.max_stop_token_ids} are allowed",
            "stop_token_ids",
        )
    given: dict[str, Any] = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "min_p": body.min_p,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "repetition_penalty": body.repetition_penalty,
    }
    values = {**defaults, **{name: value for name, value in given.items() if value is not None}}
    try:
        return SamplingParams(
            n=n,
            max_tokens=max_tokens,
            min_tokens=body.min_tokens,
            stop=tuple(stop),
            stop_token_ids=tuple(body.stop_token_ids or ()),
            include_stop_str_in_output=body.include_stop_str_in_output,
            ignore_eos=body.ignore_eos,
            seed=body.seed,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            logit_bias=_logit_bias(body, limits),
            allowed_token_ids=body.allowed_token_ids,
            bad_words=tuple(bad_words),
            skip_special_tokens=body.skip_special_tokens
            if skip_special_tokens is None
            else skip_special_tokens,
            structured_outputs=structured_outputs(body, limits),
            **values,
        )
    except (ValueError, TypeError, OverflowError) as error:
        name = str(error).partition("=")[0]
        raise bad_request(str(error), name if name.isidentifier() else None) from None


def _logit_bias(body: Sampling, limits: Limits) -> dict[int, float] | None:
    if not body.logit_bias:
        return None
    if len(body.logit_bias) > limits.max_logit_bias:
        raise bad_request(
            f"{len(body.logit_bias)} logit_bias entries: at most {limits.max_logit_bias} are allowed",
            "logit_bias",
        )
    bias: dict[int, float] = {}
    for key, value in body.logit_bias.items():
        if not key.isdecimal() or len(key) > 10 or int(key) > MAX_TOKEN_ID:
            raise bad_request(f"logit_bias key {key!r}: token ids are allowed", "logit_bias")
        bias[int(key)] = max(-100.0, min(100.0, value))
    return bias
