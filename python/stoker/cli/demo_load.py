"""The requests of `stoker demo`, and two ways to run them: arriving over time with a look at each step, and all at once against
the clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from stoker.assemble import Assembly
from stoker.cli.demo_view import Shown, Span
from stoker.demo_model import RecallPrompt, recall_prompts, story_prompts
from stoker.interrupt import Interrupts
from stoker.llm import LLM
from stoker.outputs import RequestOutput
from stoker.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class DemoRequest:
    """A prompt, when it comes, and how to tell whether the answer is right."""

    number: int
    kind: str
    """story or recall."""
    prompt: str
    token_ids: list[int]
    params: SamplingParams
    arrival: float
    """Seconds from the start."""
    recall: RecallPrompt | None = None

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def expected_tokens(self) -> int:
        """For progress bars: the most that can come."""
        return self.params.max_tokens or 1

    def is_right(self, text: str) -> bool | None:
        """Whether a recall answer is right; None for a story."""
        return None if self.recall is None else self.recall.is_right(text)


def make_requests(
    llm: LLM, count: int, seed: int, seconds: float, max_prompt_tokens: int
) -> list[DemoRequest]:
    """Recall prompts (greedy; lengths 60 to `max_prompt_tokens`) and story prompts (sampled; answers of very different
    lengths), in random order, arriving over `seconds`: a handful at once, the others one by one."""
    rng = Random(seed)
    num_recall = count * 5 // 8
    items: list[RecallPrompt | str] = [
        *recall_prompts(num_recall, seed, min_tokens=60, max_tokens=max_prompt_tokens),
        *story_prompts(count - num_recall, seed),
    ]
    rng.shuffle(items)
    arrivals = sorted([0.0] * min(6, count) + [rng.uniform(0, seconds) for _ in range(max(0, count - 6))])
    tokenizer = llm.get_tokenizer()
    requests = []
    for number, (item, arrival) in enumerate(zip(items, arrivals, strict=True), 1):
        if isinstance(item, str):
            length = rng.choice((40, 80, 120, 160, 220, 280))
            params = SamplingParams(temperature=0.8, top_p=0.95, seed=seed + number, max_tokens=length)
            requests.append(DemoRequest(number, "story", item, tokenizer.encode(item), params, arrival))
        else:
            params = SamplingParams(temperature=0.0, max_tokens=16, stop=["\n"])
            ids = tokenizer.encode(item.prompt)
            requests.append(DemoRequest(number, "recall", item.prompt, ids, params, arrival, item))
    return requests


class LiveRun:
    """Requests that come when their time has come, driven a step at a time; `shown` says how each stands."""

    def __init__(self, llm: LLM, requests: list[DemoRequest]) -> None:
        self.llm = llm
        self.shown = [Shown(request) for request in requests]
        self.outputs: dict[int, RequestOutput] = {}
        self.num_tokens = 0
        self._assemblies: dict[str, tuple[Assembly, Shown]] = {}

    def run(self, look: Callable[[float], None]) -> None:
        """Until all are done; `look(seconds since the start)` is called after every step and now and then between."""
        engine, start = self.llm.engine, time.monotonic()
        try:
            with Interrupts() as interrupts:
                while len(self.outputs) < len(self.shown):
                    self._turn(time.monotonic() - start)
                    look(time.monotonic() - start)
                    interrupts.check()
        finally:
            for rid, (assembly, _) in self._assemblies.items():
                if not assembly.finished:
                    engine.abort(rid)
            while engine.has_unfinished():
                engine.step()

    def _turn(self, now: float) -> None:
        """Adds who has come, and takes a step or waits a moment."""
        engine = self.llm.engine
        coming = [shown for shown in self.shown if shown.lane == "coming"]
        for shown in coming:
            if shown.request.arrival <= now:
                self._add(shown)
        if engine.has_unfinished():
            for news in engine.step():
                assembly, shown = self._assemblies[news.rid]
                if assembly.update(news):
                    engine.abort(news.rid, news.index)
                self._note(assembly, shown)
            self._guess_lanes()
        else:
            next_arrival = min(shown.request.arrival for shown in coming)
            time.sleep(max(0.0, min(0.05, next_arrival - now)))

    def _add(self, shown: Shown) -> None:
        request, rid = shown.request, f"demo-{shown.request.number}"
        self.llm.engine.add_request(rid, request.token_ids, request.params)
        assembly = Assembly(rid, request.prompt, request.token_ids, request.params, self.llm.tokenizer)
        self._assemblies[rid] = (assembly, shown)
        shown.lane = "waiting"

    def _note(self, assembly: Assembly, shown: Shown) -> None:
        output = assembly.output()
        answer = output.outputs[0]
        self.num_tokens += len(answer.token_ids) - shown.num_tokens
        shown.num_tokens, shown.text = len(answer.token_ids), answer.text
        shown.lane = "done" if output.finished else "decode" if answer.token_ids else shown.lane
        if output.finished:
            shown.right = shown.request.is_right(answer.text)
            self.outputs[shown.request.number] = output

    def _guess_lanes(self) -> None:
        """The engine tells how many wait; in the order of arrival (fcfs) it is the last ones."""
        before = [shown for shown in self.shown if shown.lane in ("waiting", "prefill")]
        waiting = min(self.llm.engine.stats().num_waiting, len(before))
        for place, shown in enumerate(before):
            shown.lane = "prefill" if place < len(before) - waiting else "waiting"


@dataclass(frozen=True, slots=True)
class Race:
    """All requests at once through one batching mode."""

    batching: str
    seconds: float
    num_steps: int
    num_tokens: int
    texts: list[str]
    spans: list[Span]

    @property
    def rate(self) -> float:
        """Output tokens a second."""
        return self.num_tokens / self.seconds


def race(llm: LLM, requests: list[DemoRequest], batching: str) -> Race:
    """Runs all requests from time 0 and takes the time."""
    steps = llm.engine.stats().num_steps
    start = time.monotonic()
    outputs = llm.generate(
        [request.token_ids for request in requests], [request.params for request in requests], use_tqdm=False
    )
    seconds = time.monotonic() - start
    spans = [
        Span(
            request.kind,
            output.metrics.first_scheduled_time - start,
            (output.metrics.first_token_time or output.metrics.finished_time) - start,
            output.metrics.finished_time - start,
        )
        for request, output in zip(requests, outputs, strict=True)
    ]
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    steps = llm.engine.stats().num_steps - steps
    return Race(batching, seconds, steps, tokens, [output.outputs[0].text for output in outputs], spans)
