"""Builds the C++ test binaries once (with the planted bugs compiled in, all switched off) and runs them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def build(folder: str = "build/native-tests") -> Path:
    """Configures and builds what has changed; returns the folder of the binaries."""
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    ninja = shutil.which("ninja", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert cmake is not None, "the C++ tests need cmake"
    assert ninja is not None, "the C++ tests need ninja"
    launcher = shutil.which("ccache")
    configure = [
        cmake,
        *("-S", str(ROOT), "-B", str(ROOT / folder), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"),
        *("-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS_RELEASE=-O1", "-DSTOKER_CUDA=OFF"),
        *("-DSTOKER_WERROR=ON", "-DSTOKER_TESTS=ON", "-DSTOKER_PLANTED_BUGS=ON"),
        f"-DPython_EXECUTABLE={sys.executable}",
        *([f"-DCMAKE_CXX_COMPILER_LAUNCHER={launcher}"] if launcher else []),
    ]
    run_checked(configure)
    run_checked(
        [cmake, "--build", str(ROOT / folder), "-j", os.environ.get("JOBS", "2"), "--target", "native_tests"]
    )
    return ROOT / folder / "tests"


def run_checked(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout
