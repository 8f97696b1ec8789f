"""`stoker bench serve`: load for any OpenAI endpoint, and what its users would have felt."""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from stoker.cli.bench_client import Answer, Endpoint, HttpError, ask, get_json

# Token ids that any vocabulary has; words that any tokenizer makes one or two tokens of.
_FIRST_ID, _LAST_ID = 300, 999
_WORDS = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
]
_MOONCAKE_BLOCK = 512
_PERCENTILES = (50, 90, 95, 99)


@dataclass(slots=True)
class Job:
    """One request to come: when (seconds after the start), how long, and what it shares (ids of prefix blocks)."""

    at: float
    input_len: int
    output_len: int
    blocks: tuple[int, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `serve` alone."""
    g = parser.add_argument_group("bench serve")
    g.add_argument("--url", default="http://127.0.0.1:8000", help="the API's base (default: %(default)s)")
    g.add_argument("--endpoint", choices=("completions", "chat"), default="completions")
    g.add_argument("--api-key", metavar="KEY")
    g.add_argument("--rate", type=float, metavar="R", help="requests a second; without it all come at once")
    g.add_argument(
        "--arrival",
        choices=("poisson", "gamma", "constant"),
        default="poisson",
        help="gaps between requests at --rate (default: poisson)",
    )
    g.add_argument(
        "--burstiness",
        type=float,
        default=1.0,
        metavar="B",
        help="gamma's shape: below 1 in bursts, above 1 even",
    )
    g.add_argument(
        "--concurrency",
        type=int,
        metavar="N",
        help="at most N requests at once; without --rate: N clients in a closed loop",
    )
    g.add_argument("--trace", metavar="FILE", help="arrivals and lengths: Mooncake's JSONL or Azure's CSV")
    g.add_argument(
        "--trace-speed", type=float, default=1.0, metavar="X", help="play the trace X times as fast"
    )
    g.add_argument(
        "--input-dist", metavar="D", help="N, uniform:A:B, normal:MEAN:SD or lognormal:MEDIAN:SIGMA"
    )
    g.add_argument("--output-dist", metavar="D", help="the same, for the answers")
    g.add_argument(
        "--slo",
        nargs="+",
        default=[],
        metavar="ttft:MS",
        help="goodput counts requests within these: ttft, itl (mean), e2e",
    )
    g.add_argument("--stop-at-eos", action="store_true", help="let answers end by themselves")
    g.add_argument(
        "--extra-body", type=json.loads, default={}, metavar="JSON", help="fields for every request"
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the load and returns its figures. ValueError for options that do not fit."""
    slo = _slo(args.slo)
    jobs = list(_jobs(args))
    if not jobs:
        raise ValueError("there is no request to send")
    endpoint = Endpoint(
        args.url,
        "/v1/completions" if args.endpoint == "completions" else "/v1/chat/completions",
        args.api_key,
    )
    endpoint.address  # noqa: B018  (raises)
    try:
        model = asyncio.run(_first_model(endpoint))
    except (OSError, HttpError, ValueError, EOFError) as error:
        raise ValueError(f"--url {args.url}: {error}") from None
    answers, seconds = asyncio.run(_run(args, endpoint, model, jobs))
    return {"model": model, "results": [report(answers, seconds, slo)], "errors": _errors(answers)}


def report(answers: list[Answer], seconds: float, slo: dict[str, float]) -> dict[str, float]:
    """The figures of a run: seconds throughout. Failed requests are counted and are in no time."""
    fine = [one for one in answers if one.error is None]
    out = sum(one.output_tokens for one in fine)
    figures: dict[str, float] = {
        "requests": len(answers),
        "failed": len(answers) - len(fine),
        "seconds": seconds,
        "requests_per_second": len(fine) / seconds,
        "input_tokens_per_second": sum(one.prompt_tokens for one in fine) / seconds,
        "output_tokens_per_second": out / seconds,
    }
    values = {
        "ttft": [one.ttft for one in fine],
        "itl": [gap for one in fine for gap in one.gaps],
        "e2e": [one.e2e for one in fine],
    }
    for name, found in values.items():
        if found:
            figures[f"{name}_mean"] = sum(found) / len(found)
            figures |= {f"{name}_p{p}": percentile(found, p) for p in _PERCENTILES}
    if slo:
        good = sum(_meets(one, slo) for one in fine)
        figures["goodput_share"] = good / len(answers)
        figures["goodput_requests_per_second"] = good / seconds
    return figures


def percentile(values: list[float], p: float) -> float:
    """The smallest value that at least p % of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(p / 100 * len(ordered)) - 1)]


def _meets(one: Answer, slo: dict[str, float]) -> bool:
    gaps = one.gaps
    felt = {"ttft": one.ttft, "e2e": one.e2e, "itl": sum(gaps) / len(gaps) if gaps else 0.0}
    return all(felt[name] <= limit for name, limit in slo.items())


def _slo(given: list[str]) -> dict[str, float]:
    limits = {}
    for one in given:
        name, _, value = one.partition(":")
        try:
            limits[name] = float(value) / 1e3
        except ValueError:
            limits[name] = math.nan
        if name not in ("ttft", "itl", "e2e") or not limits[name] > 0:
            raise ValueError(f"--slo {one}: ttft:MS, itl:MS and e2e:MS are allowed")
    return limits


def _errors(answers: list[Answer]) -> dict[str, int]:
    return dict(Counter(one.error for one in answers if one.error is not None).most_common(5))


# --- what comes when ------------------------------------------------------------------------------------------------------


def _jobs(args: argparse.Namespace) -> Iterator[Job]:
    rng = random.Random(args.seed)
    if args.trace is not None:
        yield from _trace(Path(args.trace), args.num_prompts, args.trace_speed)
        return
    inputs = lengths("--input-dist", args.input_dist or str(args.input_len), rng)
    outputs = lengths("--output-dist", args.output_dist or str(args.output_len), rng)
    at = 0.0
    for _ in range(args.num_prompts):
        yield Job(at, inputs(), outputs())
        if args.rate is not None:
            at += gap(args.arrival, args.rate, args.burstiness, rng)


def gap(kind: str, rate: float, burstiness: float, rng: random.Random) -> float:
    """Seconds until the next request; their mean is 1 / rate."""
    if not rate > 0 or not burstiness > 0:
        raise ValueError(f"--rate {rate}, --burstiness {burstiness}: must be above 0")
    if kind == "constant":
        return 1 / rate
    return (
        rng.expovariate(rate) if kind == "poisson" else rng.gammavariate(burstiness, 1 / (rate * burstiness))
    )


def lengths(option: str, text: str, rng: random.Random) -> Callable[[], int]:
    """A draw of lengths, at least 1, from its description."""
    kind, *numbers = text.split(":") if ":" in text else ("fixed", text)
    try:
        values = [float(number) for number in numbers]
    except ValueError:
        values = []
    draws: dict[tuple[str, int], Callable[..., float]] = {
        ("fixed", 1): lambda n: n,
        ("uniform", 2): lambda a, b: rng.randint(int(a), int(b)),
        ("normal", 2): rng.gauss,
        ("lognormal", 2): lambda median, sigma: rng.lognormvariate(math.log(median), sigma),
    }
    draw = draws.get((kind, len(values)))
    if draw is None or not all(value >= 0 for value in values) or not values[0] > 0:
        raise ValueError(
            f"{option} {text}: allowed are N, uniform:A:B, normal:MEAN:SD and lognormal:MEDIAN:SIGMA"
        )
    return lambda: max(1, round(draw(*values)))


def _trace(path: Path, most: int, speed: float) -> Iterator[Job]:
    if not speed > 0:
        raise ValueError(f"--trace-speed {speed}: must be above 0")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ValueError(f"--trace {path}: {error.strerror}") from None
    read = _mooncake if lines and lines[0].lstrip().startswith("{") else _azure
    try:
        jobs = [job for _, job in zip(range(most), read(lines), strict=False)]
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"--trace {path}: neither Mooncake's JSONL nor Azure's CSV ({error!r})") from None
    start = jobs[0].at if jobs else 0.0
    for job in jobs:
        job.at = (job.at - start) / speed
    yield from jobs


def _mooncake(lines: list[str]) -> Iterator[Job]:
    for line in filter(None, lines):
        one = json.loads(line)
        blocks = tuple(one.get("hash_ids") or ())
        yield Job(one["timestamp"] / 1e3, one["input_length"], max(1, one["output_length"]), blocks)


def _azure(lines: list[str]) -> Iterator[Job]:
    for row in csv.DictReader(lines):
        # Seven digits of a second, which fromisoformat takes from Python 3.11 on.
        moment = datetime.fromisoformat(row["TIMESTAMP"].strip()[:26])
        yield Job(moment.timestamp(), int(row["ContextTokens"]), max(1, int(row["GeneratedTokens"])))


# --- sending --------------------------------------------------------------------------------------------------------------


def body_of(args: argparse.Namespace, model: str, job: Job, number: int) -> bytes:
    """A request's JSON. Prompts differ, but for blocks that a trace says are shared."""
    body: dict[str, Any] = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
    body |= {"max_tokens": job.output_len, "temperature": 0, "ignore_eos": not args.stop_at_eos}
    rng = random.Random(f"{args.seed}/{number}")
    if args.endpoint == "completions":
        ids: list[int] = []
        for block in job.blocks[: job.input_len // _MOONCAKE_BLOCK]:
            shared = random.Random(f"{args.seed}/block {block}")
            ids += (shared.randint(_FIRST_ID, _LAST_ID) for _ in range(_MOONCAKE_BLOCK))
        ids += (rng.randint(_FIRST_ID, _LAST_ID) for _ in range(job.input_len - len(ids)))
        body["prompt"] = ids
    else:
        body["messages"] = [{"role": "user", "content": " ".join(rng.choices(_WORDS, k=job.input_len))}]
    return json.dumps(body | args.extra_body).encode()


async def _first_model(endpoint: Endpoint) -> str:
    models = await get_json(endpoint, "/v1/models")
    return str(models["data"][0]["id"])


async def _run(
    args: argparse.Namespace, endpoint: Endpoint, model: str, jobs: list[Job]
) -> tuple[list[Answer], float]:
    seats = asyncio.Semaphore(args.concurrency or len(jobs))
    answers = [Answer() for _ in jobs]
    start = time.perf_counter()

    async def one(number: int, job: Job) -> None:
        body = body_of(args, model, job, number)
        await asyncio.sleep(max(0.0, start + job.at - time.perf_counter()))
        async with seats:
            await ask(endpoint, body, answers[number])

    with _Bar(answers, shown=args.json != "-") as bar:
        watch = asyncio.create_task(bar.watch())
        await asyncio.gather(*(one(number, job) for number, job in enumerate(jobs)))
        watch.cancel()
    return answers, time.perf_counter() - start


class _Bar:
    """Requests done and tokens a second, on stderr where that is a terminal."""

    def __init__(self, answers: list[Answer], shown: bool) -> None:
        self._answers = answers
        self._progress: Any = None
        if shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            columns = ("requests", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._progress = Progress(
                *columns, TextColumn("{task.fields[rate]}"), console=Console(stderr=True)
            )

    def __enter__(self) -> _Bar:
        if self._progress is not None:
            self._progress.start()
            self._task = self._progress.add_task("requests", total=len(self._answers), rate="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    async def watch(self) -> None:
        start = time.perf_counter()
        while self._progress is not None:
            done = sum(one.ended > 0 for one in self._answers)
            tokens = sum(len(one.frames) for one in self._answers)
            rate = f"{tokens / max(time.perf_counter() - start, 1e-3):,.0f} tok/s"
            self._progress.update(self._task, completed=done, rate=rate)
            await asyncio.sleep(0.25)
