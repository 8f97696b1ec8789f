"""`stoker trace record | show | plot | export | replay`: what the scheduler did, step by step."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stoker.cli.options import add_engine_arguments, check_folder, engine_options

if TYPE_CHECKING:
    from stoker.viz.trace import Trace

HELP = "look at what the scheduler did"
_PICTURES = ("timeline", "overview", "kv", "queue", "tokens", "latency")
_ENDS = (".png", ".svg", ".pdf", ".html")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Four things to do with a trace, and one with an event log."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    record = actions.add_parser(
        "record", help="run the demo's requests, or a file of prompts, and record each step"
    )
    record.add_argument(
        "out", metavar="FILE", help="where the trace goes (JSON lines; gzipped if it ends in .gz)"
    )
    record.add_argument(
        "-m", "--model", default="stoker-demo", help="checkpoint folder or hub id (default: stoker-demo)"
    )
    record.add_argument(
        "--file", metavar="PROMPTS", help="one prompt a line, all at once, instead of the demo's requests"
    )
    record.add_argument("--requests", type=int, default=16, metavar="N", help="of the demo (default: 16)")
    record.add_argument(
        "--seconds", type=float, default=0.0, metavar="S", help="they arrive over this time (default: 0)"
    )
    record.add_argument(
        "--max-prompt-tokens",
        type=int,
        default=400,
        metavar="N",
        help="longest prompt of the demo's requests (default: 400)",
    )
    record.add_argument(
        "--seed", type=int, default=7, metavar="N", help="of the demo's requests (default: 7)"
    )
    record.add_argument(
        "--max-tokens",
        type=int,
        default=64,
        metavar="N",
        help="of an answer to a prompt of --file (default: 64)",
    )
    add_engine_arguments(record, without=("seed",))
    show = actions.add_parser("show", help="a table of the steps")
    show.add_argument("trace", metavar="FILE")
    show.add_argument("--reqs", action="store_true", help="a table of the requests instead")
    show.add_argument("--last", type=int, metavar="N", help="only the last N rows")
    plot = actions.add_parser("plot", help="a picture, or a page with all of them")
    plot.add_argument("trace", metavar="FILE", nargs="+", help="several: one below the other")
    plot.add_argument(
        "-o", "--out", required=True, metavar="PICTURE", help="name that ends in .png, .svg, .pdf or .html"
    )
    plot.add_argument(
        "--what",
        choices=_PICTURES,
        default="timeline",
        help="which picture (default: timeline; a page has all)",
    )
    plot.add_argument(
        "--rows", choices=("seat", "req"), default="seat", help="a row of the timeline is ... (default: seat)"
    )
    plot.add_argument(
        "-x", choices=("time", "step"), default="time", help="the timeline's axis (default: time)"
    )
    plot.add_argument(
        "--name", action="append", metavar="NAME", help="of each FILE in turn (default: its batching mode)"
    )
    export = actions.add_parser("export", help="Perfetto / Chrome trace-event JSON")
    export.add_argument("trace", metavar="FILE")
    export.add_argument(
        "-o", "--out", required=True, metavar="JSON", help="open it at ui.perfetto.dev or chrome://tracing"
    )
    replay = actions.add_parser(
        "replay",
        help="run an event log (--event-log FILE) again without a model; exit code 1 if a batch comes out differently",
    )
    replay.add_argument("log", metavar="LOG")
    replay.add_argument(
        "--redact",
        metavar="OUT",
        help="write the log with tokens, ids, tenants and salts renumbered: it holds no text and replays the same",
    )
    replay.add_argument("--check", action="store_true", help="every invariant after every event (slow)")


def run(args: argparse.Namespace) -> int:
    """Does it; exit code 0, or 1 if a replayed batch differs."""
    actions = {"record": _record, "show": _show, "plot": _plot, "export": _export, "replay": _replay}
    return actions[args.action](args)


def _record(args: argparse.Namespace) -> int:
    if args.requests < 1:
        raise ValueError(f"--requests {args.requests}: at least 1 is needed")
    if args.seconds < 0:
        raise ValueError(f"--seconds {args.seconds}: must be 0 or more")
    if args.max_prompt_tokens < 60:
        raise ValueError(
            f"--max-prompt-tokens {args.max_prompt_tokens}: the demo's requests need at least 60"
        )
    prompts = None if args.file is None else _prompts(args.file)
    check_folder(args.out)
    options = {"max_num_seqs": 8, "max_num_batched_tokens": 256, "num_kv_blocks": 384, "progress": False}
    from stoker.cli.demo_load import LiveRun, make_requests
    from stoker.llm import LLM
    from stoker.sampling_params import SamplingParams
    from stoker.viz.recorder import recording

    with LLM(
        args.model, **{**(options if prompts is None else {"progress": False}), **engine_options(args)}
    ) as llm:
        command = "stoker " + " ".join(sys.argv[1:])
        if prompts is not None:
            params = SamplingParams(temperature=0.0, max_tokens=args.max_tokens)
            with recording(llm.engine.loop, model=args.model, command=command) as recorded:
                llm.generate(prompts, params)
        else:
            longest = min(args.max_prompt_tokens, llm.engine.max_model_len - 64)
            requests = make_requests(llm, args.requests, args.seed, args.seconds, longest)
            # The first steps of a process are slow (pages, threads): they are not what is to be seen.
            llm.generate(
                [request.token_ids[:40] for request in requests[:4]], requests[0].params, use_tqdm=False
            )
            with recording(llm.engine.loop, model=args.model, command=command) as recorded:
                LiveRun(llm, requests).run(lambda now: None)
    try:
        recorded.trace.save(args.out)
    except OSError as error:
        raise ValueError(f"{args.out}: {error.strerror or error}") from None
    print(f"{args.out}: {len(recorded.trace.steps)} steps of {len(recorded.trace.reqs)} requests")
    return 0


def _replay(args: argparse.Namespace) -> int:
    from stoker.scheduler import redact, replay

    try:
        log = Path(args.log).read_bytes()
    except OSError as error:
        raise ValueError(f"{args.log}: {error.strerror or error}") from None
    try:
        report = replay(log, check=args.check)
    except ValueError as error:
        raise ValueError(f"{args.log}: {error}") from None
    done = f"{args.log}: {report.num_events} events, {report.num_steps} steps"
    if report.first_difference:
        print(f"{done}; step {report.first_difference} comes out differently: {report.what}")
    else:
        print(f"{done}: the same batches{'' if report.redacted else ', byte for byte'}")
    if args.redact is not None:
        check_folder(args.redact)
        Path(args.redact).write_bytes(redact(log))
        print(args.redact)
    return 1 if report.first_difference else 0


def _prompts(path: str) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--file {path}: {getattr(error, 'strerror', None) or error}") from None
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"--file {path}: holds no prompt")
    return prompts


def _load(path: str) -> Trace:
    from stoker.viz.trace import Trace

    return Trace.load(path)


def _plot(args: argparse.Namespace) -> int:
    end = Path(args.out).suffix.lower()
    if end not in _ENDS:
        raise ValueError(f"--out {args.out}: its name must end in one of {', '.join(_ENDS)}")
    check_folder(args.out)
    traces = [_load(path) for path in args.trace]
    names = args.name or [
        str(trace.config.get("batching", Path(path).stem))
        for trace, path in zip(traces, args.trace, strict=True)
    ]
    if len(names) != len(traces):
        raise ValueError(f"--name was given {len(names)} times for {len(traces)} traces")
    if any(not trace.steps for trace in traces):
        raise ValueError("a trace without steps has no picture")
    if end == ".html":
        from stoker.viz.page import save_page

        save_page(traces, names, args.out)
    else:
        from stoker.viz.pictures import pictures, save

        save(pictures(traces, names, args.what, rows=args.rows, x=args.x), args.out)
    print(args.out)
    return 0


def _export(args: argparse.Namespace) -> int:
    from stoker.viz.perfetto import save_perfetto

    check_folder(args.out)
    save_perfetto(_load(args.trace), args.out)
    print(args.out)
    return 0


def _show(args: argparse.Namespace) -> int:
    from rich.console import Console

    from stoker.viz.measures import summary

    if args.last is not None and args.last < 1:
        raise ValueError(f"--last {args.last}: must be at least 1")
    trace = _load(args.trace)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    found = summary(trace)
    console.print(
        f"{trace.meta.get('model', '')} {trace.config.get('batching', '')}: {found.num_reqs} requests, "
        f"{found.num_steps} steps, {found.seconds:.2f} s, {found.tokens_per_second:,.0f} output tokens/s, "
        f"seats in use {100 * found.seats_in_use:.0f}%\n"
        f"time to first token p50 {1e3 * found.ttft_p50:.1f} ms, p99 {1e3 * found.ttft_p99:.1f} ms; "
        f"inter-token latency p50 {1e3 * found.itl_p50:.2f} ms, p99 {1e3 * found.itl_p99:.2f} ms; "
        f"{found.num_preemptions} preemptions",
        soft_wrap=True,
    )
    if trace.meta.get("dropped_steps"):
        console.print(f"[bold]{trace.meta['dropped_steps']} steps were not kept: the recording was full[/]")
    console.print(_req_table(trace, args.last) if args.reqs else _step_table(trace, args.last))
    return 0


def _table(*columns: str) -> Any:
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, justify="left" if column in ("end", "rid") else "right", no_wrap=True)
    return table


def _step_table(trace: Trace, last: int | None) -> Any:
    table = _table(
        "step", "at s", "ms", "host µs", "tokens", "decode", "chunks", "new",
        "run", "wait", "preempt", "used", "cached", "free",
    )  # fmt: skip
    for step in trace.steps[-last:] if last else trace.steps:
        s = step.stats
        table.add_row(
            str(step.batch_id),
            f"{(step.start - trace.began) / 1e9:.3f}",
            f"{(step.end - step.start) / 1e6:.2f}",
            f"{step.host_ns / 1e3:.1f}",
            *(str(s[name]) for name in ("num_tokens", "num_decode_rows", "num_prefill_rows")),
            str(sum(step.tokens.values())),
            *(str(s[name]) for name in ("num_running", "num_waiting", "num_preempted")),
            *(str(s[name]) for name in ("used_blocks", "cached_blocks", "free_blocks")),
        )
    return table


def _req_table(trace: Trace, last: int | None) -> Any:
    from stoker.viz.spans import Phase, req_spans

    table = _table(
        "req", "prompt", "cached", "output", "waited ms", "first ms", "all ms", "preempt", "end", "rid"
    )
    spans = req_spans(trace)
    reqs = list(trace.reqs.values())
    for req in reqs[-last:] if last else reqs:
        waited = sum(
            span.end - span.begin for span in spans[req.key] if span.phase in (Phase.WAITING, Phase.PREEMPTED)
        )
        first = req.first_token_time - req.arrival_time
        table.add_row(
            req.label,
            str(req.prompt_len),
            str(req.cached_tokens),
            str(req.num_outputs),
            f"{waited / 1e6:.1f}",
            f"{first / 1e6:.1f}" if req.first_token_time >= 0 else "-",
            f"{(req.finish_time - req.arrival_time) / 1e6:.1f}" if req.reason else "-",
            str(req.retractions + req.swaps),
            req.reason or "goes on",
            req.rid,
        )
    return table
