"""Random workloads over batching modes, policies, admissions, chunk sizes, tiny pools, overlap depths, aborts and failing steps.

Protects DESIGN.md section 10: every req ends exactly once with exactly the tokens it would get alone, nothing leaks, no
limit is exceeded, nothing waits for ever. The workloads run in C++ on the real scheduler and loop; tests/native/run.cpp
says what is checked after every turn.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SEEDS_THAT_ONCE_FAILED = (7001890, 7005127, 7007104, 7009852, 7010065, 95004629, 95006428)


def run(binary: Path, *arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(binary), *arguments], capture_output=True, text=True, check=False, timeout=timeout
    )


def test_short(native_tests: Path) -> None:
    """Fixed seeds, on the test's own thread, checked after every turn."""
    done = run(native_tests / "random_workloads", "--count", "3000")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_short_on_threads(native_tests: Path) -> None:
    """The same workloads with the loop's own thread, a worker thread below it and two threads that add and abort."""
    done = run(native_tests / "random_workloads", "--count", "300", "--threads")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_short_with_failing_plans(native_tests: Path) -> None:
    """Plans that find no memory, at any of the places that ask for some, leave no trace: the event log is the same, byte
    for byte, as without them, and is replayed to the same batches. While a step is decided nothing is asked for."""
    done = run(native_tests / "random_workloads", "--count", "400", "--failing-plans")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.parametrize(
    ("seed", "how"),
    [(200361, ["--threads"]), *((seed, []) for seed in SEEDS_THAT_ONCE_FAILED)],
)
def test_seeds_that_once_failed(native_tests: Path, seed: int, how: list[str]) -> None:
    """200361: a block that drained, was used again and drained again settled at its first place, before the blocks that
    build on it, and was evicted under them. 7001890: the way back from host memory took blocks of a window for a whole
    prompt that never holds them at once, more than there were. 7005127, 7007104, 7009852: a step that failed left what it
    had written in the prefix cache, where it had taken the place of a window's blocks that had left. 95004629, 95006428: an
    entry of a failed step stayed in the prefix cache where those between it and the last of its branch held no block. 7010065: a req that
    had just come back was swapped again before it ran, by a copy that did not wait for what others had written."""
    done = run(native_tests / "random_workloads", "--first", str(seed), "--count", "1", *how)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_long(native_tests: Path) -> None:
    """20,000 workloads by turns and 2,000 on threads, on other seeds than the short form."""
    done = run(native_tests / "random_workloads", "--first", "1000000", "--count", "20000", timeout=3000)
    assert done.returncode == 0, done.stdout[-4000:]
    done = run(
        native_tests / "random_workloads", "--first", "2000000", "--count", "2000", "--threads", timeout=3000
    )
    assert done.returncode == 0, done.stdout[-4000:]
    done = run(
        *(native_tests / "random_workloads", "--first", "3000000", "--count", "10000", "--failing-plans"),
        timeout=3000,
    )
    assert done.returncode == 0, done.stdout[-4000:]


def test_native_checks(native_tests: Path) -> None:
    """The scripted executor catches each broken promise, and the loop's threads hand over without loss (also: step 2
    is scheduled before step 1 ends)."""
    for name in ("scripted_checks", "loop_threads"):
        done = run(native_tests / name, timeout=120)
        assert done.returncode == 0, f"{name}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
