"""`stoker generate`: answers prompts from arguments, a file or stdin, shown as they grow or as one JSON object a line."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stoker.cli.options import add_engine_arguments, add_sampling_arguments, engine_options, sampling_options

if TYPE_CHECKING:
    from stoker.llm import LLM
    from stoker.outputs import RequestOutput
    from stoker.sampling_params import SamplingParams


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The prompts, where they come from, and how answers are shown."""
    parser.add_argument(
        "prompts", nargs="*", metavar="PROMPT", help="none: one prompt for each line of stdin"
    )
    parser.add_argument(
        "-m",
        "--model",
        default="stoker-demo",
        help="checkpoint folder or hub id (default: the embedded stoker-demo)",
    )
    parser.add_argument(
        "-f",
        "--file",
        metavar="PATH",
        help='one prompt a line ("-": stdin); a line that is a JSON object may hold "prompt" or "prompt_token_ids"',
    )
    parser.add_argument("--whole", action="store_true", help="the whole file, or stdin, is one prompt")
    parser.add_argument(
        "--chat", action="store_true", help="prompts are messages of a user; uses the chat template"
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object a line for each prompt, as it ends"
    )
    parser.add_argument("--no-stream", action="store_true", help="show answers only when they are complete")
    add_sampling_arguments(parser)
    add_engine_arguments(parser, without=("seed",))  # --seed is the request's


def run(args: argparse.Namespace) -> int:
    """Answers in the order of the prompts; exit code 1 if one of them ended with an error."""
    prompts = list(_prompts(args))
    from stoker.llm import LLM
    from stoker.sampling_params import SamplingParams

    given = sampling_options(args)
    SamplingParams(**given)  # a bad value is told before a model is loaded
    with LLM(args.model, **engine_options(args)) as llm:
        params = dataclasses.replace(llm.get_default_sampling_params(), **given)
        if "max_tokens" not in given:
            params = dataclasses.replace(params, max_tokens=256)
        if args.chat:
            prompts = [_chat_prompt(llm, prompt) for prompt in prompts]
        show = _show_json if args.json else _show_text
        return show(llm, prompts, params, not args.no_stream)


def _prompts(args: argparse.Namespace) -> Iterable[Any]:
    if args.prompts and args.file:
        raise ValueError("give prompts as arguments or with --file, not both")
    if args.prompts:
        return list(args.prompts)
    if args.file and args.file != "-":
        try:
            text = Path(args.file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--file {args.file}: {error}") from None
    else:
        if sys.stdin.isatty():
            print("Type a prompt, then Ctrl-D:", file=sys.stderr)
        text = sys.stdin.read()
    prompts: list[Any] = [text] if args.whole else [_line(line) for line in text.splitlines() if line.strip()]
    if not prompts or prompts == [""]:
        raise ValueError("no prompt was given: name one as an argument, with --file, or on stdin")
    return prompts


def _line(line: str) -> Any:
    if line.startswith("{"):
        try:
            return json.loads(line)
        except ValueError:
            pass  # a text that happens to begin so
    return line


def _chat_prompt(llm: LLM, prompt: Any) -> dict[str, Any]:
    tokenizer = llm.get_tokenizer()
    if tokenizer.chat_template is None:
        raise ValueError("--chat: this model has no chat template")
    if not isinstance(prompt, str):
        raise ValueError(f"--chat needs texts, got {prompt!r}")
    text = tokenizer.chat_template.render([{"role": "user", "content": prompt}])
    return {"prompt": prompt, "prompt_token_ids": tokenizer.encode(text, add_special_tokens=False)}


def _show_text(llm: LLM, prompts: list[Any], params: SamplingParams, stream: bool) -> int:
    """One answer after another; the first that is not complete grows as it comes."""
    headed = len(prompts) > 1 or params.n > 1
    latest: dict[int, RequestOutput] = {}
    at, shown, failed = 0, 0, False  # the prompt whose answer is shown, and how much of it
    for index, output in llm.stream(prompts, params):
        latest[index] = output
        while (current := latest.get(at)) is not None:
            grows = stream and params.n == 1
            if not grows and not current.finished:
                break
            for answer in current.outputs:
                if headed and not shown:
                    number = f" [{answer.index}]" if params.n > 1 else ""
                    _write(f"--- {_name(prompts[at])}{number}\n")
                _write(answer.text[max(0, shown - 1) :])
                if current.finished:
                    _write("\n")
            shown = 1 + len(current.outputs[0].text) if grows else 0
            if not current.finished:
                break
            failed |= _complain(current)
            at, shown = at + 1, 0
    return int(failed)


def _show_json(llm: LLM, prompts: list[Any], params: SamplingParams, stream: bool) -> int:
    """Each prompt's answers on a line of their own, in the order in which they end."""
    failed = False
    for index, output in llm.stream(prompts, params):
        if output.finished:
            metrics = output.metrics
            entry = {
                "index": index,
                "prompt": output.prompt,
                "num_prompt_tokens": len(output.prompt_token_ids),
                "num_cached_tokens": output.num_cached_tokens,
                "outputs": [dataclasses.asdict(answer) for answer in output.outputs],
                "seconds": {
                    "queue": metrics.queue_time,
                    "time_to_first_token": metrics.time_to_first_token,
                    "latency": metrics.latency,
                },
                "num_preemptions": metrics.num_preemptions,
            }
            _write(json.dumps(entry, ensure_ascii=False) + "\n")
            failed |= any(answer.error is not None for answer in output.outputs)
    return int(failed)


def _name(prompt: Any) -> str:
    text = prompt.get("prompt", prompt.get("prompt_token_ids")) if isinstance(prompt, dict) else prompt
    line = " ".join(str(text).split())
    return line if len(line) <= 70 else line[:67] + "..."


def _complain(output: RequestOutput) -> bool:
    wrong = [answer.error for answer in output.outputs if answer.error is not None]
    for error in wrong:
        print(f"stoker generate: {error}", file=sys.stderr)
    return bool(wrong)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
