"""`stoker simulate [sweep | fit | replay]`: the scheduler on an imagined machine, in virtual time."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stoker.cli.options import check_folder
from stoker.cli.simulate_options import add_scenario_arguments, scenario_of, slo_of, value_of

if TYPE_CHECKING:
    from stoker.sim.run import Run
    from stoker.sim.scenario import Scenario
    from stoker.viz.trace import Trace

_ENDS = (".png", ".svg", ".pdf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One run by itself; `sweep` runs many, `fit` makes a cost model, `replay` repeats a recorded run."""
    add_scenario_arguments(parser)
    out = parser.add_argument_group("what comes out")
    out.add_argument("--json", metavar="OUT", help='the figures ("-": only JSON, on stdout)')
    out.add_argument(
        "--plot", metavar="PICTURE", help="distributions and the run's course: .png, .svg or .pdf"
    )
    out.add_argument("--record", metavar="FILE", help="replica 0's step trace, for `stoker trace`")
    actions = parser.add_subparsers(dest="action", metavar="sweep | fit | replay")
    sweep = actions.add_parser("sweep", help="many simulations over the cores", allow_abbrev=False)
    add_scenario_arguments(sweep)
    what = sweep.add_argument_group("what is varied")
    what.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="NAME=V1,V2,...",
        help="a value of each (may be repeated: all combinations)",
    )
    what.add_argument(
        "--find",
        choices=("rate", "replicas"),
        help="for each combination: the highest rate, or the fewest replicas, within the SLO",
    )
    what.add_argument(
        "--share", type=float, default=0.99, metavar="X", help="of requests that must keep it (default: 0.99)"
    )
    what.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: the cores)"
    )
    what.add_argument("--json", metavar="OUT", help='all figures ("-": only JSON, on stdout)')
    what.add_argument(
        "--plot", metavar="PICTURE", help="figures against the first varied value: .png, .svg or .pdf"
    )
    fit = actions.add_parser("fit", help="a cost model from recorded step traces", allow_abbrev=False)
    fit.add_argument("traces", nargs="+", metavar="TRACE", help="from `stoker trace record`")
    fit.add_argument("-o", "--out", required=True, metavar="FILE", help="where the cost model goes (.json)")
    fit.add_argument(
        "--no-noise", dest="noise", action="store_false", help="steps take exactly what the model says"
    )
    replay = actions.add_parser(
        "replay", help="repeat a recorded run's step times and compare the batches", allow_abbrev=False
    )
    replay.add_argument(
        "trace",
        metavar="TRACE",
        help="from `stoker trace record`; its prompts must share no prefix, for it does not hold them",
    )


def run(args: argparse.Namespace) -> int:
    """Does it; exit code 0."""
    return {None: _run, "sweep": _sweep, "fit": _fit, "replay": _replay}[args.action](args)


def _run(args: argparse.Namespace) -> int:
    from stoker.sim.run import Run, finish, prepare

    scenario, slo = _asked(args)
    for path in (args.json, args.record):
        if path not in (None, "-"):
            check_folder(path)
    requests, setting = scenario.requests(), scenario.setting()
    simulation = prepare(setting, requests, record=args.record is not None)
    began = time.perf_counter()
    with _bar("requests", len(requests)) as seen:
        finish(simulation, seen)
    wall = time.perf_counter() - began
    done = Run(requests, setting, simulation)
    report = {"scenario": _told(args, scenario), **done.report(slo)}
    if args.record is not None:
        _record(simulation.take_recording(), setting.scheduler, args)
    if args.plot is not None:
        from stoker.viz.pictures import save
        from stoker.viz.simulated import picture

        save(picture([done], [args.model or "run"], slo), args.plot)
    if _write(report, args.json):
        _show(done, report, wall)
    return 0


def _asked(args: argparse.Namespace) -> tuple[Scenario, Any]:
    if args.plot is not None and Path(args.plot).suffix.lower() not in _ENDS:
        raise ValueError(f"--plot {args.plot}: its name must end in one of {', '.join(_ENDS)}")
    if args.plot is not None:
        check_folder(args.plot)
    scenario = scenario_of(args)
    varied = {text.partition("=")[0] for text in getattr(args, "vary", [])}
    comes = scenario.trace or scenario.rate or scenario.users or varied & {"rate", "users", "trace"}
    if not comes and scenario.rate is None and getattr(args, "find", None) != "rate":
        raise ValueError("say what comes: --rate R (requests a second), --users N, or --trace PATH")
    return scenario, slo_of(args)


def _told(args: argparse.Namespace, scenario: Scenario) -> dict[str, Any]:
    return {
        "model": args.model,
        "device": scenario.device if scenario.cost is None else None,
        **scenario.told(),
    }


def _record(recording: dict[str, Any], config: dict[str, Any], args: argparse.Namespace) -> None:
    from stoker.viz.trace import Trace

    meta = {
        "model": args.model or "simulated",
        "command": "stoker " + " ".join(sys.argv[1:]),
        "machine": "simulated",
    }
    trace = Trace.from_recording(recording, {**meta, "config": config})
    trace.save(args.record)


def _sweep(args: argparse.Namespace) -> int:
    from stoker.sim.sweep import fewest_replicas, grid, highest_rate, workers

    base, slo = _asked(args)
    varied: dict[str, list[Any]] = {}
    for text in args.vary:
        name, equals, values = text.partition("=")
        if not equals or not values:
            raise ValueError(f"--vary {text}: must be NAME=V1,V2,...")
        varied[name.replace("-", "_")] = [value_of(value) for value in values.split(",")]
    if not varied and args.find is None:
        raise ValueError("say what is varied: --vary NAME=V1,V2,... or --find rate | replicas")
    if args.find is not None and not slo:
        raise ValueError("--find needs a service level: --slo-ttft, --slo-itl or --slo-e2e")
    if not 0 < args.share <= 1:
        raise ValueError(f"--share {args.share}: must be above 0 and at most 1")
    if args.find == "rate" and base.users:
        raise ValueError("--find rate: a closed loop (--users) has no rate")
    points = grid(base, varied)
    if args.find != "rate":
        for _, scenario in points:  # what cannot work is told before anything runs
            scenario.setting()
    rows = []
    with _bar("simulations", None if args.find else len(points)) as seen:
        done = 0

        def count() -> None:
            nonlocal done
            done += 1
            seen(done)

        with workers(max(1, args.workers), slo, count) as evaluate:
            if args.find is None:
                for (chosen, _), report in zip(points, evaluate(s for _, s in points), strict=True):
                    rows.append({**chosen, **report})
            for chosen, scenario in points if args.find else []:
                width = max(2, args.workers)
                if args.find == "rate":
                    found = highest_rate(scenario, evaluate, args.share, width=width)
                else:
                    found = fewest_replicas(scenario, evaluate, args.share, width=width)
                best = next((r for value, r in found.tried if value == found.value), {})
                tried = [{args.find: value, **report} for value, report in found.tried]
                rows.append({**chosen, args.find: found.value, **best, "tried": tried})
    report = {
        "scenario": _told(args, base),
        "varied": varied,
        "find": args.find,
        "share": args.share,
        "results": rows,
    }
    if args.plot is not None:
        from stoker.viz.pictures import save
        from stoker.viz.simulated import sweep_picture

        save(sweep_picture(rows, varied, args.find), args.plot)
    if _write(report, args.json):
        _show_sweep(rows, [*varied, *([args.find] if args.find else [])])
    return 0


def _fit(args: argparse.Namespace) -> int:
    from stoker.sim.cost import cost_dict
    from stoker.sim.fit import fit
    from stoker.viz.trace import Trace

    check_folder(args.out)
    traces: list[Trace] = [Trace.load(path) for path in args.traces]
    found = fit([step for trace in traces for step in trace.steps], noise=args.noise)
    text = json.dumps(
        {
            "cost_model": cost_dict(found.cost),
            "engine": traces[0].config,
            "fitted_to": args.traces,
            "machine": traces[0].meta.get("machine"),
            "num_steps": found.num_steps,
            "mean_error": found.mean_error,
        },
        indent=1,
    )
    Path(args.out).write_text(text + "\n", encoding="utf-8")
    print(
        f"{args.out}: fitted to {found.num_steps} steps; one is off by {100 * found.mean_error:.1f}% in the mean"
    )
    return 0


def _replay(args: argparse.Namespace) -> int:
    from stoker.sim.replay import replay
    from stoker.viz.trace import Trace

    trace = Trace.load(args.trace)
    both = replay(trace)
    place = both.first_difference
    if place is None:
        print(f"{args.trace}: {len(both.recorded)} steps, the same batches")
        return 0
    recorded, repeated = (
        batches[place] if place < len(batches) else "nothing" for batches in (both.recorded, both.repeated)
    )
    print(
        f"{args.trace}: step {place + 1} of {len(both.recorded)} differs (request, tokens, KV length of each row)"
    )
    print(f"  recorded {recorded}\n  repeated {repeated}")
    if shared := sum(req.cached_tokens > 0 for req in trace.reqs.values()):
        print(
            f"  {shared} requests found tokens in the prefix cache: a trace holds no tokens, so the repetition cannot share them. "
            "Record with --no-enable-prefix-caching to compare, or repeat an event log: `stoker trace replay`"
        )
    return 1


def _write(report: dict[str, Any], path: str | None) -> bool:
    """False: stdout is taken."""
    text = json.dumps(report, indent=1) + "\n"
    if path == "-":
        print(text, end="")
        return False
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return True


@contextmanager
def _bar(what: str, total: int | None) -> Generator[Callable[[int], None], None, None]:
    """A bar on stderr, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)


def _show(done: Run, report: dict[str, Any], wall: float) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    replicas = f"{report['num_replicas_mean']:.1f} replicas, " if len(done.replicas) > 1 else ""
    console.print(
        f"{report['num_reqs']:,} requests over {report['seconds']:,.1f} s: {replicas}{report['reqs_per_s']:.2f} requests/s, "
        f"{report['output_tokens_per_s']:,.0f} output tokens/s (simulated in {wall:.2f} s of wall time)"
    )
    table = Table(box=None, padding=(0, 2, 0, 0))
    names = ("mean", "p50", "p90", "p95", "p99", "max")
    for head in ("ms", *names):
        table.add_column(head, justify="left" if head == "ms" else "right")
    rows = (("time to first token", "ttft"), ("inter-token latency", "itl"), ("mean of a request", "tpot"),
            ("end to end", "e2e"), ("in the queue", "queued"))  # fmt: skip
    for label, key in rows:
        table.add_row(label, *(_ms(report[key][name]) for name in names))
    console.print(table)
    console.print(
        f"KV in use {report['kv_use_mean']:.0%} in the mean, {report['kv_use_max']:.0%} at most; prefix hits {report['hit_rate']:.1%} "
        f"of prompt tokens; {report['preemptions']} preemptions; device busy {report['device_busy']:.0%}; {report['steps']:,} steps"
    )
    if report["num_failures"]:
        console.print(f"{report['num_failures']} failures, {report['num_resent']} requests sent again")
    if "slo" in report:
        slo = report["slo"]
        console.print(
            f"within the SLO {slo['share']:.2%}: goodput {slo['goodput_reqs_per_s']:.2f} requests/s"
        )


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.2f}" if seconds < 0.1 else f"{1e3 * seconds:,.0f}"


def _show_sweep(rows: list[dict[str, Any]], names: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    table = Table(box=None, padding=(0, 2, 0, 0))
    heads = (
        *names,
        "tokens/s",
        "TTFT p50 ms",
        "p99",
        "ITL p50 ms",
        "p99",
        "KV mean",
        "hits",
        "preempt",
        "in SLO",
        "goodput/s",
    )
    for head in heads:
        table.add_column(head, justify="right")
    for row in rows:
        values = [
            "none" if row[n] is None else f"{row[n]:.4g}" if isinstance(row[n], float) else str(row[n])
            for n in names
        ]
        if "ttft" not in row:
            table.add_row(*values, *[""] * (len(heads) - len(names)))
            continue
        slo = row.get("slo")
        table.add_row(
            *values, f"{row['output_tokens_per_s']:,.0f}", _ms(row["ttft"]["p50"]), _ms(row["ttft"]["p99"]),
            _ms(row["itl"]["p50"]), _ms(row["itl"]["p99"]), f"{row['kv_use_mean']:.0%}", f"{row['hit_rate']:.1%}",
            str(row["preemptions"]), f"{slo['share']:.1%}" if slo else "-", f"{slo['goodput_reqs_per_s']:.2f}" if slo else "-",
        )  # fmt: skip
    console.print(table)
