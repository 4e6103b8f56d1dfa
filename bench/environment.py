"""What a measurement was made on, and the file that records it."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "xpmlp", "numpy", "scipy", "scikit-learn", "array-api-compat", "numba", "torch", "jax",
    "jaxlib", "onnxruntime", "cupy", "cupy-cuda12x", "cupy-cuda13x", "array-api-strict", "pytest",
)  # fmt: skip
# Those of a headline, by their names in prose.
NAMED = {
    "numpy": "NumPy",
    "numba": "Numba",
    "scikit-learn": "scikit-learn",
    "torch": "PyTorch",
    "jax": "JAX",
    "onnxruntime": "ONNX Runtime",
}
# What tells libraries how many threads to use.
VARIABLES = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "XLA_FLAGS",
    "CUPY_TF32", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)  # fmt: skip
_ABSENT = "not installed"


def environment() -> dict[str, Any]:
    """CPU, operating system, BLAS, threads, Python, packages and date.

    To be called when everything that loads a BLAS has been imported.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": _cores(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "blas": _blas(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def headline(facts: dict[str, Any]) -> str:
    """The environment in a line."""
    blas = facts["blas"]
    if isinstance(blas, list):
        blas = ", ".join(
            sorted({f"{b['internal_api']} {b['version']} x{b['num_threads']}" for b in blas})
        )
    return (
        f"{facts['cpu']}, {facts['cores']} cores; {facts['python']}, {packages(facts)}; "
        f"BLAS: {blas}; {facts['date']}"
    )


def packages(facts: dict[str, Any]) -> str:
    """The packages that matter and their versions."""
    return ", ".join(
        f"{name} {facts['packages'][package]}"
        for package, name in NAMED.items()
        if facts["packages"].get(package, _ABSENT) != _ABSENT
    )


def write(path: Path, record: dict[str, Any]) -> None:
    """Write `record` as JSON, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return _ABSENT


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def _blas() -> list[dict[str, Any]] | str:
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return "unknown, threadpoolctl is not installed"
    # Without "filepath": it says where someone's environment lies, and nothing about speed.
    return [
        {key: value for key, value in library.items() if key != "filepath"}
        for library in threadpool_info()
        if library["user_api"] == "blas"
    ]
