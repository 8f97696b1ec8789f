"""`stoker top` reads what a server tells, counts only what is recent, and draws it in any width."""

from __future__ import annotations

import io
import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from rich.console import Console

from stoker.cli import main
from stoker.cli.top import view
from stoker.cli.top_metrics import Past, parse_metrics, quantile

PAGE = """# HELP stoker_output_tokens_total x
stoker_answers_finished_total{{reason="stop"}} {n}.0
stoker_answers_finished_total{{reason="length"}} 2.0
stoker_prompt_tokens_total {prompt}
stoker_cached_prompt_tokens_total {cached}
stoker_engine_num_waiting 3.0
stoker_engine_num_blocks 100.0
stoker_engine_num_free_blocks 50.0
stoker_engine_num_cached_blocks 20.0
stoker_engine_num_steps_total {n}
stoker_engine_output_tokens_total {n}00
stoker_time_to_first_token_seconds_bucket{{le="0.1"}} 0.0
stoker_time_to_first_token_seconds_bucket{{le="0.2"}} {n}.0
stoker_time_to_first_token_seconds_bucket{{le="+Inf"}} {n}.0
not a metric
"""


def page(n: int, prompt: int = 0, cached: int = 0) -> str:
    return PAGE.format(n=n, prompt=prompt, cached=cached)


def test_metrics_are_read() -> None:
    """Labels are summed and kept; histograms by bound; what is no metric is skipped."""
    look = parse_metrics(page(5), 1.0)
    assert look.values["stoker_answers_finished_total"] == 7
    assert look.values["stoker_answers_finished_total{stop}"] == 5
    assert look.histograms["stoker_time_to_first_token_seconds"] == {0.1: 0, 0.2: 5, math.inf: 5}
    assert look.engine("num_waiting") == 3
    assert look.engine("output_tokens") == 500


def test_quantiles() -> None:
    """Linear inside a bucket; the largest finite bound beyond; nan of nothing."""
    assert quantile({0.1: 0, 0.2: 10, math.inf: 10}, 0.5) == pytest.approx(0.15)
    assert quantile({0.1: 4, 0.2: 5, math.inf: 10}, 0.99) == 0.2
    assert math.isnan(quantile({0.1: 0, math.inf: 0}, 0.5))
    assert math.isnan(quantile({}, 0.5))


def test_rates_are_of_the_window_and_a_new_server_begins_anew() -> None:
    """Old looks leave; counters that fall mean another process."""
    past = Past(10.0)
    for second in range(30):
        past.add(parse_metrics(page(second), float(second)))
    assert past.seconds == pytest.approx(10, abs=1)
    assert past.rate("output_tokens") == pytest.approx(100)
    assert past.recent("stoker_time_to_first_token_seconds")[0.2] == pytest.approx(past.seconds)
    past.add(parse_metrics(page(0), 30.0))
    assert past.seconds == 0
    assert past.rate("output_tokens") == 0


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_view_fits(width: int) -> None:
    """No line is wider than the terminal; the figures are on it."""
    past = Past(10.0)
    past.add(parse_metrics(page(1, 100, 0), 0.0))
    past.add(parse_metrics(page(4, 200, 25), 1.0))
    past.newest.reqs = REQS["data"]
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(view("http://x", past, "", width))
    text = out.getvalue()
    assert max(len(line) for line in text.splitlines()) <= width
    if width >= 80:
        assert "25%" in text
        assert "30% used, 20% cached of 100 blocks" in text
        assert "0.15" in text
        assert "in host memory" not in text
    past.newest.values |= {"stoker_engine_num_host_blocks": 40.0, "stoker_engine_num_free_host_blocks": 33.0}
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(view("http://x", past, "", width))
    assert max(len(line) for line in out.getvalue().splitlines()) <= width
    assert width < 80 or "of 100 blocks, 7 of 40 in host memory" in out.getvalue()


REQS = {
    "data": [
        {"id": f"cmpl-{n}", "state": "waiting", "age": float(n), "prompt_tokens": 10 * n, "output_tokens": 0,
         "waits_for": {"code": "seats", "message": "waits for a seat; all are taken"}}
        for n in range(1, 10)
    ]
}  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        pages = {
            "/metrics": page(3),
            "/ready": '{"status": "ready"}',
            "/v1/requests?limit=512": json.dumps(REQS),
        }
        body = pages[self.path].encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def test_once(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Two looks at a real socket, printed, exit code 0."""
    assert main(["top", server, "--once", "--interval", "0.1"]) == 0
    out = capsys.readouterr().out
    assert "ready" in out
    # The slowest, with why they wait; not all of them.
    assert out.index("cmpl-9") < out.index("cmpl-8") < out.index("cmpl-4")
    assert "cmpl-3" not in out
    assert "waits for a seat" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["127.0.0.1:1"], "is `stoker serve` running there?"),
        (["--interval", "0"], "0.1 to 3600"),
        (["--window", "0.5"], "at least the interval"),
        (["ftp://x"], "http:// or https://"),
    ],
)
def test_bad_input(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line and exit code 2."""
    assert main(["top", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
