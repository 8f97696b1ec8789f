"""The page at /: one file, no request to anywhere else, a chat that streams, and the user's own request seen in the lanes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support import browser
from support.server_process import CHECKPOINT, RunningServer, start_server, stop_server

needs_chromium = pytest.mark.skipif(browser.find() is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of 16 seats whose steps take 20 ms."""
    options = {
        "factory": "served_engine:build",
        "model_path": str(CHECKPOINT),
        "tick": 0.02,
        "max_num_seqs": 16,
    }
    running = start_server(tmp_path_factory.mktemp("page"), engine=options)
    yield running
    stop_server(running)


def test_the_page_is_one_file_with_a_policy(server: RunningServer) -> None:
    """It names no other host, and the browser is told to fetch from none."""
    response = httpx.get(server.url + "/")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    text = response.text.replace("http://www.w3.org/2000/svg", "")
    assert "http://" not in text
    assert "https://" not in text


@needs_chromium
@pytest.mark.parametrize(
    ("width", "height", "theme"),
    [
        (1280, 800, "light"),
        pytest.param(1280, 800, "dark", marks=pytest.mark.long),
        pytest.param(390, 844, "light", marks=pytest.mark.long),
        (390, 844, "dark"),
    ],
)
def test_a_chat_streams_and_is_seen_travelling(
    slow: RunningServer, width: int, height: int, theme: str
) -> None:
    """While 40 requests run: keys alone send a message; it is seen in a lane, marked as one's own; its answer appears; the
    layout fits the width; nothing is fetched from elsewhere and nothing is complained about."""

    def crowd(i: int) -> None:
        ask = {"prompt": [30 + i, 5, 6], "max_tokens": 60 + 3 * i, "user": "crowd"}
        with slow.client() as client:
            client.post("/v1/completions", json=ask)

    threads = [threading.Thread(target=crowd, args=(i,)) for i in range(40)]
    with browser.Browser(f"{slow.url}/?theme={theme}", width, height, phone=width < 500) as page:
        page.until("document.querySelector('#dot.on')")
        for thread in threads:
            thread.start()
        page.until("document.querySelectorAll('.chip').length > 20")
        page.until("document.activeElement === document.getElementById('prompt')")
        page.type("Tell me about the sea")
        page.press("Enter", 13)
        page.until("document.querySelector('#lane-waiting .chip.mine')")
        page.until("document.querySelector('#lane-decoding .chip.mine')")
        page.until("document.querySelector('.turn.assistant').textContent.length > 20")
        if folder := os.environ.get("STOKER_PICTURES"):
            page.picture(Path(folder) / f"page-{width}-{theme}.png")
        assert page.ask("getComputedStyle(document.documentElement).getPropertyValue('--paper')") == (
            "#f7f4ef" if theme == "light" else "#191613"
        )
        assert page.ask("document.documentElement.scrollWidth") <= width
        box = page.ask("(r => [r.top, r.bottom])(document.getElementById('send').getBoundingClientRect())")
        assert 0 < box[0] < box[1] <= height
        page.press("Escape", 27)
        page.until("document.getElementById('send').textContent === 'Send'")
        assert {url.split("/")[2] for url in page.requested() if url.startswith("http")} == {
            slow.url.split("/")[2]
        }
        assert page.complaints() == []
    for thread in threads:
        thread.join()
