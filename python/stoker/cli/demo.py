"""`stoker demo`: many requests served at once by the embedded model, to watch; then what they were worth, and what continuous
batching is worth against the old way."""

from __future__ import annotations

import argparse
import time
from typing import Any

from stoker.cli.options import add_engine_arguments, engine_options

MODES = ("static", "prefill_first", "continuous")
_MODE_SAYS = {
    "static": "a batch runs until its last request is done",
    "prefill_first": "prefill steps and decode steps apart",
    "continuous": "decodes and prefill chunks in one step",
}
_FRAME = 1 / 15
_LINE_EVERY = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes of the show; the defaults take half a minute on two cores."""
    parser.add_argument(
        "-m",
        "--model",
        default="stoker-demo",
        help="a model that knows the demo's tasks (default: stoker-demo)",
    )
    parser.add_argument("--requests", type=int, default=32, metavar="N", help="prompts (default: 32)")
    parser.add_argument(
        "--seconds", type=float, default=8.0, metavar="S", help="they arrive over this time (default: 8)"
    )
    parser.add_argument(
        "--seed", type=int, default=7, metavar="N", help="of prompts, arrivals and sampling (default: 7)"
    )
    parser.add_argument("--plain", action="store_true", help="lines of text instead of the live view")
    parser.add_argument("--no-compare", action="store_true", help="leave out the race of the batching modes")
    add_engine_arguments(parser, without=("seed", "batching"))


def run(args: argparse.Namespace) -> int:
    """The show; exit code 0."""
    if args.requests < 1:
        raise ValueError(f"--requests {args.requests}: at least 1 is needed")
    if args.seconds < 0:
        raise ValueError(f"--seconds {args.seconds}: must be 0 or more")
    from rich.console import Console

    console = Console(highlight=False)
    options = {
        "max_num_seqs": 12,
        "max_num_batched_tokens": 256,
        "num_kv_blocks": 384,
        "dtype": "float32",  # so that the texts do not depend on who shares a batch
        "progress": False,
        **engine_options(args),
    }
    started = time.monotonic()
    console.print("[dim]loading torch and the model …[/]", end="\r" if console.is_terminal else "\n")
    from stoker.llm import LLM

    with LLM(args.model, **options) as llm:
        from stoker.cli.demo_load import make_requests

        longest = min(1000, llm.engine.max_model_len - 64)
        requests = make_requests(llm, args.requests, args.seed, args.seconds, longest)
        _warm_up(llm, requests)
        config = llm.engine.model_config
        console.print(
            f"[bold]stoker demo[/]  {args.model}: {config.num_hidden_layers} layers of {config.hidden_size}, "
            f"ready after {time.monotonic() - started:.1f} s\n"
            f"{len(requests)} prompts, [cyan]stories[/] and [magenta]recall[/] tasks of "
            f"{min(r.num_prompt_tokens for r in requests)} to {max(r.num_prompt_tokens for r in requests)} tokens, "
            f"come over {args.seconds:g} s to {options['max_num_seqs']} seats\n"
        )
        live = _watch(console, llm, requests, options["max_num_seqs"], args.plain)
    _show_texts(console, live)
    _show_recall(console, live)
    if not args.no_compare:
        _compare(console, args, options, requests)
    return 0


def _watch(console: Any, llm: Any, requests: Any, seats: int, plain: bool) -> Any:
    """The live part; returns the run."""
    from rich.live import Live

    from stoker.cli.demo_load import LiveRun
    from stoker.cli.demo_view import Meter, lanes, plain_line

    live, meter = LiveRun(llm, requests), Meter()
    last = [-1.0]
    if plain or not console.is_terminal:

        def look_plain(now: float) -> None:
            rate = meter.sample(now, live.num_tokens)
            if now - last[0] >= _LINE_EVERY or len(live.outputs) == len(requests):
                last[0] = now
                console.print(plain_line(live.shown, llm.engine.stats(), rate, now))

        live.run(look_plain)
        return live

    height = min(seats, max(4, console.height - 9))
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as view:

        def look(now: float) -> None:
            if now - last[0] >= _FRAME or len(live.outputs) == len(requests):
                last[0] = now
                meter.sample(now, live.num_tokens)
                view.update(
                    lanes(live.shown, llm.engine.stats(), meter, now, height, console.width), refresh=True
                )

        live.run(look)
    return live


def _show_texts(console: Any, live: Any) -> None:
    from rich.padding import Padding
    from rich.text import Text

    by_length = sorted(live.shown, key=lambda s: -s.num_tokens)
    stories = [s for s in by_length if s.request.kind == "story"][:2]
    recalls = [s for s in live.shown if s.request.kind == "recall"][:3]
    console.print("\n[bold]Some of the texts[/]")
    for s in stories:
        text = Text.assemble((s.request.prompt.strip(), "cyan"), " ", s.text.strip())
        console.print(Padding(Text.assemble((f"{s.request.number:02}  ", "bold cyan"), text), (1, 2, 0, 2)))
    console.print()
    for s in recalls:
        mark = ("✓", "green") if s.right else ("✗", "bold red")
        expected = "" if s.right else f" (right: {s.request.recall.answer})"
        console.print(
            Text.assemble(
                (f"  {s.request.number:02}  ", "bold magenta"),
                (f"… {s.request.num_prompt_tokens} tokens of facts …  ", "dim"),
                (s.request.recall.question, "magenta"),
                "  ",
                s.text.strip(),
                " ",
                mark,
                expected,
            )
        )


def _show_recall(console: Any, live: Any) -> None:
    answers = [s.right for s in live.shown if s.right is not None]
    if answers:
        right = sum(answers)
        console.print(
            f"\n[bold]Recall[/]  {right} of {len(answers)} answers right: [bold green]{100 * right / len(answers):.0f}%[/]"
            "  [dim](a wrong KV block, slot or position would show here)[/]"
        )


def _compare(console: Any, args: argparse.Namespace, options: dict[str, Any], requests: Any) -> None:
    """The same requests, all at once, through each batching mode; the better of two rounds, so that a busy moment of the
    machine does not decide."""
    from stoker.cli.demo_load import race
    from stoker.cli.demo_view import seats_picture
    from stoker.llm import LLM

    seats = min(8, options["max_num_seqs"])
    rows = "a row is a seat, time goes right; " if console.is_terminal else ""
    console.print(
        f"\n[bold]The same {len(requests)} requests at once, {seats} seats[/]"
        f"  [dim]({rows}no prefix cache; best of 2)[/]"
    )
    # The second round must compute what the first did.
    racing = {**options, "max_num_seqs": seats, "enable_prefix_caching": False}
    best: dict[str, Any] = {}
    for lap in range(2):
        for mode in MODES:
            with (
                console.status(f"{mode}, round {lap + 1} of 2"),
                LLM(args.model, **racing, batching=mode) as llm,
            ):
                _warm_up(llm, requests)
                done = race(llm, requests, mode)
            if mode not in best or done.seconds < best[mode].seconds:
                best[mode] = done
    longest = max(done.seconds for done in best.values())
    for mode, done in best.items():
        console.print(
            f"\n  [bold]{mode}[/]  {done.seconds:.1f} s, {done.rate:,.0f} tok/s, {done.num_steps} steps  [dim]{_MODE_SAYS[mode]}[/]"
        )
        if console.is_terminal:
            for row in seats_picture(done.spans, seats, longest, console.width - 6):
                console.print("  ", row)
    static, prefill_first, continuous = (best[mode] for mode in MODES)
    same = sum(len(set(texts)) == 1 for texts in zip(*(done.texts for done in best.values()), strict=True))
    console.print(
        f"\n[bold]continuous / static: [green]{continuous.rate / static.rate:.2f}x[/] the throughput[/]"
        f"  (prefill_first / static: {prefill_first.rate / static.rate:.2f}x);"
        f" {same} of {len(requests)} texts are the same in all modes"
    )


def _warm_up(llm: Any, requests: Any) -> None:
    """The first steps of an engine are slow (pages, threads): they are not part of the show."""
    llm.generate([request.token_ids[:40] for request in requests[:4]], requests[0].params, use_tqdm=False)
