"""CUDA kernels compiled and run without a GPU, for the tests of the CuPy adapter.

`nvrtc` compiles for GPUs; `emulator` and `adapter` run the same source on the CPU, through g++.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
# No contraction, as in the adapter's own options; its kernels, like CuPy's, cast between pointers.
FLAGS = ["-O1", "-std=c++17", "-shared", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing",
         "-DNDEBUG", "-Wno-unknown-pragmas"]  # fmt: skip


def no_compiler() -> str | None:
    """Why C++ cannot be compiled here, or None."""
    return None if shutil.which("g++") else "there is no g++"


def shared_library(source: str, folder: Path, *options: str) -> ctypes.CDLL:
    """C++ source as a loaded library."""
    file, library = folder / "kernels.cpp", folder / "kernels.so"
    file.write_text(source)
    command = ["g++", *FLAGS, *options, f"-I{HERE}", str(file), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:4000]
    return ctypes.CDLL(str(library))
