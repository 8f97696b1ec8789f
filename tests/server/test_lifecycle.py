"""How a server is run: timeouts, the queue's limit, what is logged and counted, stored responses, options, restarts."""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from stoker.cli import main
from support.server_process import CHECKPOINT, ROOT, RunningServer, start_server, stop_server

LONG_ASK = {"prompt": [60, 61], "max_tokens": 2000}


def small_engine(**changes: Any) -> dict[str, Any]:
    options = {"factory": "served_engine:build", "model_path": str(CHECKPOINT), "tick": 0.005}
    return {"engine": {**options, **changes}}


@pytest.mark.parametrize(
    "own_server", [{**small_engine(max_num_seqs=1), "max_queue": 1, "api_keys": ["k"]}], indirect=True
)
def test_why_a_request_waits_and_when_the_queue_is_full(own_server: RunningServer) -> None:
    """The first runs, the second waits and says for what, the third is a 503 with Retry-After before anything is sent,
    also where it asked for a stream."""
    with own_server.client(headers={"Authorization": "Bearer k"}) as http:

        def ask(name: str) -> None:
            with http.stream(
                "POST",
                "/v1/completions",
                json={**LONG_ASK, "stream": True, "request_id": name, "user": "u-" + name},
            ) as response:
                assert response.status_code == 200
                for _ in response.iter_lines():
                    if stop.is_set():
                        break

        stop = threading.Event()
        threads = [threading.Thread(target=ask, args=(name,)) for name in ("first", "second")]
        for thread in threads:
            thread.start()
            time.sleep(0.2)
        try:
            found = http.get("/v1/requests").json()
            assert [(one["id"], one["state"], one["user"]) for one in found["data"]] == [
                ("first", "decoding", "u-first"),
                ("second", "waiting", "u-second"),
            ]
            assert found["data"][1]["waits_for"]["code"] == "seats"
            assert found["data"][1]["waits_for"]["needed"] == 1
            assert found["data"][1]["place"] == 0
            assert found["engine"]["num_waiting"] == 1
            one = http.get("/v1/requests/second").json()
            assert one["answers"][0]["waits_for"]["message"]
            assert http.get("/v1/requests?limit=0").json()["data"][0]["id"] == "first"
            assert http.get("/v1/requests/nobody").status_code == 404
            assert http.delete("/v1/requests/nobody").status_code == 404
            assert http.get("/v1/requests?limit=x").status_code == 400
            for stream in (False, True):
                for path, body in (
                    ("/v1/completions", LONG_ASK),
                    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
                ):
                    full = http.post(path, json={**body, "stream": stream})
                    assert full.status_code == 503
                    assert int(full.headers["retry-after"]) >= 1
                    assert "queue is full" in full.json()["error"]["message"]
        finally:
            stop.set()
            for thread in threads:
                thread.join()


@pytest.mark.parametrize("own_server", [{"api_workers": 2}], indirect=True)
def test_any_worker_ends_any_request(own_server: RunningServer) -> None:
    """DELETE ends a request that another worker holds; its client is told."""
    ends = []

    def ask(name: str) -> None:
        with own_server.client() as http:
            choice = http.post("/v1/completions", json={**LONG_ASK, "request_id": name}).json()["choices"][0]
            ends.append(choice["finish_reason"])

    names = [f"runaway-{i}" for i in range(6)]
    threads = [threading.Thread(target=ask, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    with own_server.client() as http:
        while len(http.get("/v1/requests").json()["data"]) < len(names):
            time.sleep(0.02)
        for name in names:
            gone = http.delete(f"/v1/requests/{name}")
            assert gone.json() == {"id": name, "object": "request", "deleted": True}
        for thread in threads:
            thread.join(5)
        assert ends == ["abort"] * len(names)
        assert http.get("/ready").json()["engine"]["num_running"] == 0


@pytest.mark.parametrize("own_server", [{"request_timeout": 0.5}], indirect=True)
def test_a_request_that_takes_too_long(own_server: RunningServer) -> None:
    """504 where nothing was sent; a stream ends with what there is. Nothing runs on."""
    with own_server.client() as http:
        late = http.post("/v1/completions", json=LONG_ASK)
        assert late.status_code == 504
        assert "0.5 s" in late.json()["error"]["message"]
        with http.stream("POST", "/v1/completions", json={**LONG_ASK, "stream": True}) as response:
            frames = [line[6:] for line in response.iter_lines() if line.startswith("data: {")]
        ends = [choice["finish_reason"] for frame in frames for choice in json.loads(frame)["choices"]]
        assert ends[-1] == "abort"
        assert http.get("/ready").json()["engine"]["num_running"] == 0


def test_a_worker_that_cannot_begin_ends_the_server(tmp_path: Path) -> None:
    """It is not started anew for ever: here its certificate is none."""
    wrong = tmp_path / "cert.pem"
    wrong.write_text("no certificate")
    began = time.monotonic()
    with pytest.raises(AssertionError, match="again and again"):
        start_server(tmp_path, ssl_certfile=str(wrong), ssl_keyfile=str(wrong))
    assert time.monotonic() - began < 50


@pytest.mark.parametrize("own_server", [{"log_prompts": True}], indirect=True)
def test_prompts_are_logged_only_when_asked(own_server: RunningServer, server: RunningServer) -> None:
    """And the access log tells each request's account."""
    for running, logged in ((own_server, True), (server, False)):
        with running.client() as http:
            body = {"prompt": "Once upon a time", "max_tokens": 4}
            name = http.post("/v1/completions", json=body).json()["id"]
        assert ("Once upon a time" in running.log.read_text()) is logged
        line = next(
            one
            for one in running.log.read_text().splitlines()
            if "POST /v1/completions 200" in one and name in one
        )
        assert re.search(r"prompt=\d+ cached=0 output=4 end=length queue=\S+ms ttft=\S+ms total=\S+ms$", line)


def test_traces_are_sent(tmp_path: Path) -> None:
    """A span a request with its stages, as a child of the caller's, to the endpoint that was named."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    bodies: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            import gzip

            data = self.rfile.read(int(self.headers["content-length"]))
            bodies.append(gzip.decompress(data) if self.headers.get("content-encoding") == "gzip" else data)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        running = start_server(tmp_path, otlp_endpoint=f"http://127.0.0.1:{collector.server_port}/v1/traces")
        try:
            parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
            with running.client() as http:
                http.post(
                    "/v1/completions", json={"prompt": [80], "max_tokens": 3}, headers={"traceparent": parent}
                )
        finally:
            stop_server(running)
            collector.shutdown()
            thread.join()
    spans: dict[str, Any] = {}
    for body in bodies:
        request = ExportTraceServiceRequest()
        request.ParseFromString(body)
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                spans |= {span.name: span for span in scope.spans}
    assert {"POST /v1/completions", "queue", "prefill", "decode"} <= set(spans)
    span = spans["POST /v1/completions"]
    assert span.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert span.parent_span_id.hex() == "b7ad6b7169203331"
    attributes = {one.key: one.value for one in span.attributes}
    assert attributes["gen_ai.usage.output_tokens"].int_value == 3
    assert spans["decode"].parent_span_id == span.span_id


def test_the_dashboard_asks_for_metrics_that_exist(server: RunningServer) -> None:
    """Every metric that a panel names is on /metrics."""
    with server.client() as http:
        http.post("/v1/completions", json={"prompt": [81], "max_tokens": 3})
        page = http.get("/metrics").text
    board = json.loads((ROOT / "deploy" / "grafana.json").read_text())
    for panel in board["panels"]:
        for target in panel["targets"]:
            for name in re.findall(r"stoker_\w+", target["expr"]):
                assert re.search(rf"^{name}[{{ ]", page, re.MULTILINE), name


@pytest.mark.parametrize("own_server", [{"store_responses": 2}], indirect=True)
def test_stored_responses(own_server: RunningServer, server: RunningServer) -> None:
    """A response goes on from a stored one as if its whole conversation had been sent; the newest two are kept; nothing is
    where it is not asked for."""
    with own_server.client() as http:

        def ask(**body: Any) -> dict[str, Any]:
            answer = http.post("/v1/responses", json={"max_output_tokens": 3, **body})
            assert answer.status_code == 200, answer.text
            return dict(answer.json())

        first = ask(input="hi", instructions="the")
        assert first["store"]
        again = http.get(f"/v1/responses/{first['id']}").json()
        assert again == first
        second = ask(input="the", previous_response_id=first["id"])
        said = [
            {"role": "user", "content": "hi"},
            *first["output"],
            {"role": "user", "content": "the"},
        ]
        whole = ask(input=said, store=False)
        assert second["usage"]["input_tokens"] == whole["usage"]["input_tokens"]
        assert second["output"][0]["content"] == whole["output"][0]["content"]
        assert http.get(f"/v1/responses/{whole['id']}").status_code == 404
        with http.stream(
            "POST", "/v1/responses", json={"input": "x", "stream": True, "max_output_tokens": 2}
        ) as streamed:
            last = [json.loads(line[6:]) for line in streamed.iter_lines() if line.startswith("data: ")][-1]
        assert http.get(f"/v1/responses/{last['response']['id']}").json() == last["response"]
        gone = http.post("/v1/responses", json={"input": "x", "previous_response_id": first["id"]})
        assert gone.status_code == 404
        assert http.delete(f"/v1/responses/{second['id']}").json()["deleted"]
        assert http.get(f"/v1/responses/{second['id']}").status_code == 404
    with server.client() as http:
        refused = http.post("/v1/responses", json={"input": "x", "previous_response_id": "resp-1"})
        assert refused.status_code == 400
        assert "--store-responses" in refused.json()["error"]["message"]


def test_keys_from_a_file_and_options_that_are_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command refuses what cannot work before anything starts, and says why."""
    from stoker.cli import serve

    monkeypatch.setenv("STOKER_API_KEY", "from-env")
    file = tmp_path / "keys"
    file.write_text("# comment\none\n\ntwo\n")
    parser = __import__("argparse").ArgumentParser()
    serve.add_arguments(parser)
    args = parser.parse_args(["m", "--api-key", "zero", "--api-key-file", str(file)])
    assert serve._all_keys(args) == ("zero", "one", "two", "from-env")
    monkeypatch.delenv("STOKER_API_KEY")
    for wrong, says in (
        (["--api-key-file", str(tmp_path / "none")], "No such file"),
        (["--port", "70000"], "65535"),
        (["--api-workers", "0"], "1 to 64"),
        (["--ssl-keyfile", str(file)], "belong together"),
        (["--limit", "max_n=0"], "at least 1"),
        (["--limit", "colour=3"], "max_n"),
        (["--answer-parser", "gpt9"], "qwen3"),
    ):
        assert main(["serve", "stoker-demo", *wrong]) != 0
        assert says in capsys.readouterr().err


@pytest.mark.parametrize("own_server", [{"restart_engine": True}], indirect=True)
def test_an_engine_that_stopped_for_good_is_replaced(own_server: RunningServer) -> None:
    """A lost device ends every request with its reason; the process leaves instead of spinning, and a new one serves."""
    before = own_server.children()["engine_main"]
    with own_server.client() as http:
        lost = http.post("/v1/completions", json={"prompt": [8], "max_tokens": 4})
        assert lost.status_code == 500
        assert "device is lost" in lost.json()["error"]["message"]
        end = time.monotonic() + 20
        while own_server.children().get("engine_main", before) == before:
            assert time.monotonic() < end
            time.sleep(0.05)
        own_server.wait_ready()
        assert http.post("/v1/completions", json={"prompt": [9], "max_tokens": 4}).status_code == 200


def test_ready_tells_a_stalled_loop(tmp_path: Path) -> None:
    """With requests to run and no step for longer than --stall-timeout, /ready is a 503 while /health stays well."""
    running = start_server(tmp_path, **small_engine(tick=30.0), stall_timeout=1.0)
    try:

        async def hang() -> tuple[int, int]:
            async with httpx.AsyncClient(base_url=running.url, timeout=60) as http:
                asking = [asyncio.create_task(http.post("/v1/completions", json=LONG_ASK)) for _ in range(2)]
                await asyncio.sleep(3.5)
                codes = (await http.get("/ready")).status_code, (await http.get("/health")).status_code
                for task in asking:
                    task.cancel()
                return codes

        assert asyncio.run(hang()) == (503, 200)
    finally:
        running.process.kill()
        running.process.wait()
        for pid in running.children().values() if running.process.poll() is None else ():
            os.kill(pid, 9)
