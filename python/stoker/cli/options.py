"""Command-line options made from the fields of EngineConfig and SamplingParams: the same names, with dashes. Only what the
user gave is passed on, so that defaults live in one place."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from stoker.config import EngineConfig
from stoker.sampling_params import SamplingParams

# Fields that have no place on a command line, or one of their own.
_NOT_ENGINE = {"model", "scheduler_options", "skip_tokenizer_init", "progress", "cuda_graph_sizes"}
_CHOICES = {
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "load_format": ("auto", "safetensors", "dummy"),
    "batching": ("continuous", "prefill_first", "static"),
    "admission": ("learned", "guaranteed", "greedy", "peak"),
    "preemption": ("auto", "retract", "swap"),
}
_SAMPLING = {
    "n": "answers to each prompt",
    "temperature": "0 takes the likeliest token",
    "top_p": "likeliest tokens that hold this share of the probability",
    "top_k": "this many likeliest tokens",
    "min_p": "tokens at least this likely, relative to the likeliest",
    "presence_penalty": "for tokens that the answer holds already",
    "frequency_penalty": "for each time that the answer holds a token already",
    "repetition_penalty": "divides the logits of tokens that were seen; 1 is none",
    "seed": "the same seed gives the same answer",
    "max_tokens": "length of an answer at most",
    "min_tokens": "no end before this many tokens",
    "logprobs": "show the logprobs of this many candidates (with --json)",
}


def add_engine_arguments(parser: argparse.ArgumentParser, *, without: tuple[str, ...] = ()) -> None:
    """`--max-num-seqs N`, `--dtype T`, `--no-enable-prefix-caching`, ...: one for each field of EngineConfig but those
    `without`."""
    group = parser.add_argument_group("engine options (fields of EngineConfig)")
    for field in fields(EngineConfig):
        if field.name in _NOT_ENGINE or field.name in without:
            continue
        flag, kind = "--" + field.name.replace("_", "-"), str(field.type)
        options: dict[str, Any] = {"dest": "engine_" + field.name, "default": argparse.SUPPRESS}
        if kind == "bool":
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
        else:
            convert = int if kind.startswith("int") else float if kind.startswith("float") else str
            choices = _CHOICES.get(field.name)
            group.add_argument(
                flag, type=convert, choices=choices, metavar=None if choices else "X", **options
            )


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """What `add_engine_arguments` found on the command line, as keyword arguments of LLM."""
    return {
        name.removeprefix("engine_"): value
        for name, value in vars(args).items()
        if name.startswith("engine_")
    }


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """`--temperature X`, `--max-tokens N`, `--stop TEXT`, ...: the fields of SamplingParams that make sense here."""
    group = parser.add_argument_group("sampling options (fields of SamplingParams)")
    kinds = {field.name: str(field.type) for field in fields(SamplingParams)}
    for name, text in _SAMPLING.items():
        convert = float if kinds[name].startswith("float") else int
        flag = "--" + name.replace("_", "-")
        group.add_argument(
            flag, type=convert, metavar="X", help=text, dest="sampling_" + name, default=argparse.SUPPRESS
        )
    group.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        dest="sampling_stop",
        default=argparse.SUPPRESS,
        help="ends the answer; may be given several times",
    )
    group.add_argument(
        "--ignore-eos",
        action="store_true",
        dest="sampling_ignore_eos",
        default=argparse.SUPPRESS,
        help="go on after an end-of-sequence token",
    )


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """What `add_sampling_arguments` found on the command line, as keyword arguments of SamplingParams."""
    prefix = "sampling_"
    return {name.removeprefix(prefix): value for name, value in vars(args).items() if name.startswith(prefix)}


def check_folder(path: str) -> None:
    """That a file can be put there: before minutes of work, not after. Raises ValueError."""
    folder = Path(path).resolve().parent
    if not folder.is_dir():
        raise ValueError(f"{path}: there is no folder {folder}")
