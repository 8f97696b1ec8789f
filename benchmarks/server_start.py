"""How soon `stoker serve` is ready, and what an idle server costs: seconds from the command to /ready, and the CPU time of all its
processes over an idle minute.

    python benchmarks/server_start.py [--model stoker-demo] [--starts 5] [--idle 60]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path


def start(model: str) -> tuple[subprocess.Popen[bytes], float]:
    """A server, and the seconds until it was ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    began = time.perf_counter()
    command = [sys.executable, "-m", "stoker.cli", "serve", model, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not answers(f"http://127.0.0.1:{port}/ready"):
        if process.poll() is not None:
            raise SystemExit("the server ended")
        time.sleep(0.01)
    return process, time.perf_counter() - began


def answers(url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        urllib.request.urlopen(url, timeout=5).read()
    except (urllib.error.URLError, ConnectionError):
        return False
    return True


def cpu_seconds(pid: int) -> dict[str, float]:
    """CPU time of a process and its children, by what they are."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    used = {}
    for one in (str(pid), *children):
        command = Path(f"/proc/{one}/cmdline").read_bytes().decode().split("\0")
        ticks = Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
        used[command[2].rsplit(".", 1)[-1]] = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    return used


def main() -> None:
    """Measures and prints JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="stoker-demo")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--idle", type=float, default=60.0)
    args = parser.parse_args()
    times = []
    for number in range(args.starts):
        process, seconds = start(args.model)
        times.append(round(seconds, 2))
        if number == args.starts - 1:
            time.sleep(2)
            before = cpu_seconds(process.pid)
            time.sleep(args.idle)
            after = cpu_seconds(process.pid)
        process.terminate()
        process.wait(60)
    share = {name: round(100 * (after[name] - before[name]) / args.idle, 3) for name in after}
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    report = {"ready_seconds": times, "idle_seconds": args.idle, "idle_percent_of_a_core": share}
    print(json.dumps({**machine, **report, "idle_percent_in_all": round(sum(share.values()), 3)}, indent=2))


if __name__ == "__main__":
    main()
