"""What holds the house up: import directions, lazy libraries, the lint rule that guards them."""

import ast
import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OPTIONAL = ("cupy", "torch", "numba", "matplotlib", "sklearn", "scipy", "tqdm", "safetensors")
HOST_FILES = {
    "cli.py",
    "datasets.py",
    "estimators.py",
    "experiment.py",
    "export.py",
    "files.py",
    "mlp.py",
    "parameters.py",
    "parity.py",
    "serialization.py",
    "validation.py",
}
ARRAY_LIBRARIES = {"numpy", "cupy", "torch", "numba"}


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_the_core_imports_no_array_library():
    for path in (ROOT / "xpmlp").glob("*.py"):
        found = {name.partition(".")[0] for name in imports_of(path)} & ARRAY_LIBRARIES
        assert found <= ({"numpy"} if path.name in HOST_FILES else set()), path.name


def test_the_core_names_adapters_only_as_strings():
    for path in (ROOT / "xpmlp").glob("*.py"):
        assert not [name for name in imports_of(path) if name.startswith("xpmlp_")], path.name


def test_imports_run_in_the_order_that_the_design_lists():
    block = (ROOT / "docs/design.md").read_text().split("```")[1]
    lines = [re.findall(r"(\w+)\.py", line) for line in block.splitlines()]
    place = {name: number for number, names in enumerate(lines) for name in names}
    modules = {path.stem for path in (ROOT / "xpmlp").glob("*.py")} - {"__init__", "__main__"}
    assert set(place) == modules
    for module in modules:
        tree = ast.parse((ROOT / f"xpmlp/{module}.py").read_text())
        checking = [node for node in tree.body if isinstance(node, ast.If)]  # TYPE_CHECKING
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("xpmlp"):
                continue
            if any(node in ast.walk(block) for block in checking):
                continue
            names = [alias.name for alias in node.names] if node.module == "xpmlp" else []
            for name in [*names, *node.module.split(".")[1:]]:
                assert place.get(name, -1) <= place[module], f"{module} imports {name}"


def test_adapters_import_only_the_adapter_interface():
    modules = ("backends", "typing", "rng", "errors", "tracing", "tape")
    allowed = {f"xpmlp.{module}" for module in modules}
    for path in (ROOT / "backends").glob("*/*.py"):
        used = {name for name in imports_of(path) if name.split(".")[0] == "xpmlp"}
        assert used <= allowed, path.name


def test_lint_refuses_an_array_library_in_the_core():
    pytest.importorskip("ruff")
    for library in ARRAY_LIBRARIES:
        checked = subprocess.run(
            [sys.executable, "-m", "ruff", "check", "--stdin-filename", "xpmlp/network.py", "-"],
            input=f"import {library}\n\n{library}\n",
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert "TID251" in checked.stdout, library


def run(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


SEARCH_PATH = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'backends')!r}]\n"


def test_importing_loads_no_optional_library():
    loaded = run(SEARCH_PATH + "import xpmlp; print(*sys.modules)").split()
    assert not {name.partition(".")[0] for name in loaded} & set(OPTIONAL)


def test_training_on_the_cpu_loads_no_optional_library():
    code = (
        SEARCH_PATH
        + """
import xpmlp
network = xpmlp.Network(2, [xpmlp.Dense(3, "relu"), xpmlp.Dense(1)], device="cpu")
xpmlp.fit(network, [[0.0, 1.0]], [1.0], loss="squared_error", epochs=1, verbose=0)
print(*sys.modules)
"""
    )
    assert not {name.partition(".")[0] for name in run(code).split()} & set(OPTIONAL)


def test_importing_takes_less_than_0_3_s_beyond_numpy():
    code = (
        SEARCH_PATH
        + """
import numpy, time
start = time.process_time()  # other processes may keep this one waiting
import xpmlp
print(time.process_time() - start)
"""
    )
    assert min(float(run(code)) for _ in range(3)) < 0.3


def test_the_examples_in_docstrings_run():
    for name in ("xpmlp", "xpmlp.network"):
        module = importlib.import_module(name)
        assert doctest.testmod(module).failed == 0
        assert doctest.testmod(module).attempted > 0


def test_the_package_works_from_a_bare_checkout(tmp_path):
    assert "usable" in run(SEARCH_PATH + "import xpmlp; print(xpmlp.available_backends())")
