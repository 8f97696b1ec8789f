"""Who may ask, and for how much: limits of bodies and heads, request ids, keys, browsers, TLS."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.server_process import RunningServer, start_server, stop_server

LIMITS = {
    "max_body_bytes": 4000,
    "max_head_bytes": 9000,
    "max_n": 2,
    "max_stop_strings": 2,
    "max_logit_bias": 3,
    "max_prompts": 2,
}


@pytest.mark.parametrize("own_server", [{"limits": {**LIMITS, "body_timeout": 0.7}}], indirect=True)
def test_limits_are_told(own_server: RunningServer) -> None:
    """Each names what was given and what is allowed."""
    with own_server.client() as http:
        for body, status, says in (
            ({"prompt": "x" * 5000}, 413, "4000"),
            ({"prompt": "x", "n": 3}, 400, "1 to 2"),
            ({"prompt": "x", "stop": ["a", "b", "c"]}, 400, "at most 2"),
            ({"prompt": "x", "logit_bias": {str(i): 1 for i in range(4)}}, 400, "at most 3"),
            ({"prompt": ["a", "b", "c"]}, 400, "at most 2"),
        ):
            answer = http.post("/v1/completions", json=body)
            assert answer.status_code == status, answer.text
            assert says in answer.json()["error"]["message"]

        def endless() -> Any:
            for _ in range(100):
                yield b" " * 100

        assert http.post("/v1/completions", content=endless()).status_code == 413

        def slow() -> Any:
            yield b'{"prompt": '
            time.sleep(1.2)
            yield b'"x"}'

        assert http.post("/v1/completions", content=slow()).status_code == 408


@pytest.mark.parametrize("own_server", [{"limits": {**LIMITS, "body_timeout": 0.7}}], indirect=True)
def test_heads_have_limits_too(own_server: RunningServer) -> None:
    """Headers without end, bytes that drip and connections that say nothing are ended; one that is kept alive is not."""
    address = ("127.0.0.1", int(own_server.url.rsplit(":", 1)[1]))

    def answer(*parts: bytes) -> bytes:
        with socket.create_connection(address, 10) as connection:
            for part in parts:
                connection.sendall(part)
                time.sleep(0.05)
            with contextlib.suppress(ConnectionResetError):
                return connection.recv(1000)
            return b""

    begin = b"GET /health HTTP/1.1\r\nHost: x\r\nX: "
    assert b"431" in answer(begin, *[b"a" * 1000] * 9).partition(b"\r\n")[0]
    assert b"408" in answer(begin, b"a").partition(b"\r\n")[0]
    assert b"408" in answer().partition(b"\r\n")[0]
    assert b"200" in answer(begin, b"a" * 8000, b"\r\n\r\n").partition(b"\r\n")[0]
    with own_server.client() as http:
        for _ in range(3):
            assert http.get("/health").status_code == 200
            time.sleep(0.8)


@pytest.mark.parametrize("name", ["a\r\nX: y", "snow\u2603", "a b", "a/0", "x" * 129])
def test_request_ids_that_fit_nowhere_are_refused(server: RunningServer, name: str) -> None:
    """They stand in a header, in the log and in the engine's names for a request's answers."""
    with server.client() as http:
        for path in ("/v1/completions", "/v1/chat/completions"):
            ask = {"prompt": [1], "messages": [{"role": "user", "content": "x"}], "request_id": name}
            answer = http.post(path, json=ask)
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == "request_id"
        assert http.post("/v1/completions", json={"prompt": [1], "request_id": "a-1.b:2"}).status_code == 200


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(server: RunningServer) -> None:
    """Characters are counted first: a huge body costs no tokenizer's time."""
    with server.client() as http:
        answer = http.post("/v1/completions", json={"prompt": "a b " * 500_000})
        assert answer.status_code == 400
        assert "2000000 characters" in answer.json()["error"]["message"]


def test_browsers_elsewhere_may_not_ask(server: RunningServer) -> None:
    """CORS is off: no answer allows another origin."""
    with server.client() as http:
        origin = {"Origin": "http://evil.example"}
        asked = http.options("/v1/completions", headers={**origin, "Access-Control-Request-Method": "POST"})
        assert asked.status_code == 405
        assert not [
            name for name in http.get("/health", headers=origin).headers if name.startswith("access-control")
        ]


@pytest.mark.parametrize(
    "own_server",
    [{"cors_origins": ["http://good.example"], "api_keys": ["k1", "k2"], "api_workers": 2}],
    indirect=True,
)
def test_keys_origins_and_workers(own_server: RunningServer) -> None:
    """A browser's first question needs no key; the others do, in either header; no key is seen in the process list; and the
    metrics of both workers are one page."""
    with own_server.client() as http:
        for origin, allowed in (
            ("http://good.example", "http://good.example"),
            ("http://evil.example", None),
        ):
            asked = http.options(
                "/v1/completions",
                headers={
                    "Origin": origin,
                    "Access-Control-Request-Method": "POST",
                    "Access-Control-Request-Headers": "authorization",
                },
            )
            assert asked.headers.get("access-control-allow-origin") == allowed
        for path in ("/v1/models", "/v1/requests", "/metrics", "/tokenize", "/openapi.json"):
            assert http.get(path).status_code == 401
        for headers in ({"Authorization": "Bearer k2"}, {"x-api-key": "k1"}):
            assert http.get("/v1/models", headers=headers).status_code == 200
        for wrong in ("k", "k1k2", "Bearer", "\xff"):
            headers = [(b"authorization", b"Bearer " + wrong.encode("latin-1"))]
            assert http.get("/v1/models", headers=headers).status_code == 401
    pids = [own_server.process.pid, *own_server.children().values()]
    for pid in pids[1:]:
        assert b"k1" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    for i in range(24):  # each on a connection of its own, so that both workers get some
        key = {"Authorization": "Bearer k1"}
        body = {"prompt": [50 + i], "max_tokens": 3}
        assert httpx.post(own_server.url + "/v1/completions", json=body, headers=key).status_code == 200
    page = httpx.get(own_server.url + "/metrics", headers=key).text
    counted = re.search(
        r'^stoker_http_requests_total\{code="200",path="/v1/completions"\} (\S+)', page, re.MULTILINE
    )
    assert counted is not None
    assert float(counted[1]) == 24


def test_tls(tmp_path: Path) -> None:
    """With a certificate the server speaks HTTPS and nothing else."""
    openssl = shutil.which("openssl")
    assert openssl is not None, "this test makes a certificate with the openssl command"
    command = [
        openssl,
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "1",
    ]
    subj = [
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        "key.pem",
        "-out",
        "cert.pem",
    ]
    subprocess.run([*command, *subj], cwd=tmp_path, check=True, capture_output=True)
    certificate = tmp_path / "cert.pem"
    running = start_server(
        tmp_path, verify=certificate, ssl_certfile=str(certificate), ssl_keyfile=str(tmp_path / "key.pem")
    )
    try:
        context = ssl.create_default_context(cafile=str(certificate))
        assert httpx.get(running.url + "/health", verify=context).json() == {"status": "ok"}
        with pytest.raises(httpx.TransportError):
            httpx.get(running.url.replace("https", "http") + "/health")
    finally:
        stop_server(running)
    assert running.process.returncode == 0


def test_every_request_has_a_name_that_comes_back(server: RunningServer) -> None:
    """The client's own, or the engine's; what is no name is not repeated."""
    with server.client() as http:
        ask = {"prompt": [70], "max_tokens": 1}
        assert (
            http.post("/v1/completions", json=ask, headers={"X-Request-Id": "a.b-1"}).headers["x-request-id"]
            == "a.b-1"
        )
        plain = http.post("/v1/completions", json=ask)
        assert plain.headers["x-request-id"] == plain.json()["id"]
        odd = http.post("/v1/completions", json=ask, headers={"X-Request-Id": "a b\tc"})
        assert odd.headers["x-request-id"] == odd.json()["id"]
