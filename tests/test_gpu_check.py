"""The script for a GPU machine, on an adapter that is here."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench import gpu_check
from bench.gpu_contenders import Products, Xpmlp
from xpmlp import get_backend

ROOT = Path(__file__).parent.parent
COUNTS = {"passed": 3, "failed": 0, "errors": 0, "skipped": 1, "skipped because": {"no beads": 1}}


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    def run(*arguments, tests=COUNTS):
        path = tmp_path / "check.json"
        monkeypatch.setattr(gpu_check, "run_tests", lambda *_, **__: tests)
        monkeypatch.setattr(gpu_check, "STEPS", 60)
        monkeypatch.setattr(gpu_check, "STREAMED", [((5, 8, 3), 16, 64)])
        monkeypatch.setattr(gpu_check, "TIMED", [((5, 8, 3), 16, 10, "ieee")])
        monkeypatch.setattr("bench.gpu_tasks.CONTENDERS", (Xpmlp, Products))
        monkeypatch.setattr("xpmlp_numpy.THRESHOLD", 10**9)
        monkeypatch.setattr(
            sys, "argv", ["gpu_check", "--out", str(path), "--steps", "2", *arguments]
        )
        code = gpu_check.main()
        return (
            code,
            capsys.readouterr().out,
            json.loads(path.read_text()) if path.exists() else None,
        )

    return run


def test_a_page_and_a_file(run):
    code, out, written = run("--backend", "numpy")
    assert code == 0
    assert "all is well" in out
    assert written["tests"] == COUNTS
    assert written["faults"] == []
    assert written["verify"]["faults"] == []
    assert written["primitives"]["matmul"] < 1e-5
    assert written["products"]["ieee"] < 1e-5
    assert written["microseconds_per_step"]["numpy on cpu"] > 0
    assert 0 <= written["captured"]["ieee"] < 1e-4
    assert written["bench"][0]["contenders"]["products alone"]["microseconds_a_step"] > 0
    assert "### 5-8-3, batch 16, ieee" in out
    assert written["streamed"][0]["streamed"] > 0
    assert "5-8-3, batch 16: an epoch takes" in out
    assert written["losses"]["ieee"] > 0
    assert "llocate" in written["memory"]
    assert written["other devices"] == {}


def test_an_error_is_a_fault_and_the_rest_is_written(run, monkeypatch):
    monkeypatch.setattr(gpu_check, "compare", lambda *_: 1 / 0)
    code, out, written = run("--backend", "numpy", tests={**COUNTS, "failed": 1})
    assert code == 1
    assert "FAULT  verify: ZeroDivisionError" in out
    assert any(fault.startswith("tests:") for fault in written["faults"])
    assert "microseconds_per_step" in written
    assert "bench" in written


def test_some_parts_alone(run, capsys):
    code, out, written = run("--backend", "numpy", "--only", "products,nodes,streamed")
    assert code == 0
    assert written.keys() == {"environment", "device", "faults", "products", "nodes", "streamed"}
    assert "a product in ieee" in out
    with pytest.raises(SystemExit):
        run("--backend", "numpy", "--only", "beads")
    assert "expected some of products, captured" in capsys.readouterr().err


def test_without_the_adapter_there_is_a_reason(run):
    code, out, written = run("--backend", "abacus")
    assert (code, written) == (2, None)
    assert "abacus: not known" in out


def test_the_tests_are_counted():
    counts = gpu_check.run_tests("strict and smoke", [])
    assert counts["passed"] >= 1
    assert counts["failed"] == counts["errors"] == 0


def test_nothing_but_numpy_and_pytest_is_needed():
    """All the files can be collected where SciPy, scikit-learn, click and the rest are missing."""
    code = """
import sys
for name in ("scipy", "sklearn", "click", "safetensors", "matplotlib", "torch", "numba",
             "array_api_strict", "pandas", "polars", "tqdm"):
    sys.modules[name] = None
import pytest
import bench.gpu_tasks
from bench.gpu_check import TESTS
sys.exit(pytest.main(["-q", "--collect-only", "-p", "no:cacheprovider", "-k", "numpy",
                      *(f"tests/test_{test}.py" for test in TESTS)]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert int(re.findall(r"(\d+)/\d+ tests collected", done.stdout)[-1]) > 1000


def test_a_training_in_each_precision_is_compared():
    torch = pytest.importorskip("torch")
    backend = get_backend("cpu", "torch")
    assert gpu_check.train_in_each_precision(backend).keys() == {"ieee", "bfloat16"}

    class Coarse(type(backend)):
        def matmul(self, a, b, out):
            super().matmul(a, torch.round(b) if self.precision != "ieee" else b, out)

    with pytest.raises(ValueError, match="bfloat16"):
        gpu_check.train_in_each_precision(Coarse("cpu"))


def test_memory_that_does_not_end_is_a_fault():
    numpy = type(get_backend("cpu", "numpy"))
    assert gpu_check.run_out_of_memory(numpy("cpu"))

    class Endless(numpy):
        def empty(self, shape, dtype):
            return None

    with pytest.raises(ValueError, match="was made"):
        gpu_check.run_out_of_memory(Endless("cpu"))


def test_further_devices_are_compared(monkeypatch):
    numpy = type(get_backend("cpu", "numpy"))

    class Second(numpy):
        def fill_uniform(self, out, stream):
            super().fill_uniform(out, stream)
            out *= 0.5

    monkeypatch.setattr("xpmlp_numpy.THRESHOLD", 10**9)
    monkeypatch.setattr("xpmlp.verify.cases", lambda: ())
    first, second = numpy("cpu"), Second("cpu")
    found = {"numpy:cpu": first, "numpy:1": second, "beads:0": second}
    monkeypatch.setattr("xpmlp.testing.participants", lambda: found)
    with pytest.raises(ValueError, match=r"\{'numpy:1': \[.*fill_uniform"):
        gpu_check.check_others(first)


def test_tests_that_hang_are_ended(monkeypatch):
    monkeypatch.setattr(gpu_check, "SECONDS_OF_TESTS", 0.1)
    with pytest.raises(subprocess.TimeoutExpired):
        gpu_check.run_tests("numpy", [])


def test_a_step_is_timed_on_both():
    assert len(gpu_check.time_steps(get_backend("cpu", "numpy"))) == 1
