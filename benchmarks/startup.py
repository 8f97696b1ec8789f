"""How soon a user may begin: `import stoker`, and `LLM("stoker-demo")` once torch is imported. Medians of five processes.

python benchmarks/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys

CODE = """
import sys, time
t = [time.perf_counter()]
import stoker
t.append(time.perf_counter())
assert "torch" not in sys.modules
import torch
t.append(time.perf_counter())
stoker.LLM("stoker-demo")
t.append(time.perf_counter())
print(t[1] - t[0], t[3] - t[2])
"""


def main() -> None:
    runs = [
        [
            float(x)
            for x in subprocess.run(
                [sys.executable, "-c", CODE], capture_output=True, check=True
            ).stdout.split()
        ]
        for _ in range(5)
    ]
    for name, seconds in zip(
        ("import stoker", 'LLM("stoker-demo") ready, torch imported'), zip(*runs, strict=True), strict=True
    ):
        print(f"{name}: {statistics.median(seconds):.3f} s (worst {max(seconds):.3f})")


if __name__ == "__main__":
    main()
