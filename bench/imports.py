"""What it takes until training starts: imports, and the first fit of a process."""

from __future__ import annotations

import compileall
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import click

from bench.contenders import WithoutNumba, Xpmlp, make_fit
from bench.data import data_option, find, out_option, rounds_option
from bench.environment import environment, headline, write
from bench.problem import Problem, problems
from bench.report import table
from bench.workers import Worker

ROOT = Path(__file__).parents[1]

# What is imported already, and what is timed then.
IMPORTS = {
    "NumPy": ("", "import numpy"),
    "xpmlp, beyond NumPy": ("import numpy", "import xpmlp"),
    "xpmlp.MLPClassifier, beyond NumPy": ("import numpy", "from xpmlp import MLPClassifier"),
    "scikit-learn's MLPClassifier, beyond NumPy": (
        "import numpy",
        "from sklearn.neural_network import MLPClassifier",
    ),
}
CASES = [("784-256-128-10", 200), ("30-64-32-2", 32)]


@click.command(name="import")
@rounds_option(5, "Fresh interpreters of each kind.")
@data_option
@out_option
def imports(rounds: int, data: Path | None, out: Path) -> None:
    """Time of `import xpmlp`, and of the first fit in a fresh process."""
    for folder in ("xpmlp", "backends"):  # as an installation does
        compileall.compile_dir(ROOT / folder, quiet=1)
    record = {
        "environment": environment(),
        "rounds": rounds,
        "imports": import_seconds(rounds),
        "first_fits": [
            first_fits(problem, rounds)
            for shape, batch in CASES
            for problem in problems(shape, [batch], path=find(data))
        ],
    }
    write(out / "import.json", record)
    click.echo(report(record))


def import_seconds(rounds: int) -> dict[str, float]:
    """The median seconds of each import, in rounds."""
    found: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for _ in range(rounds):
        for name, (before, timed) in IMPORTS.items():
            code = (
                f"import time; {before}\nstart = time.perf_counter()\n{timed}\n"
                "print(time.perf_counter() - start)"
            )
            done = subprocess.run(
                [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
            )
            found[name].append(float(done.stdout))
    return {name: median(seconds) for name, seconds in found.items()}


def first_fits(problem: Problem, rounds: int) -> dict[str, Any]:
    """Median seconds of the first and second fit in a fresh process.

    With Numba, with an empty cache of compiled code and with the one that the run before has
    filled, and without Numba.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(rounds):
        with TemporaryDirectory() as cache:
            for name, hidden in (
                ("cold cache", ()),
                ("warm cache", ()),
                ("without Numba", WithoutNumba.hidden),
            ):
                with Worker(hidden, Path(cache)) as worker:
                    worker.prepare(make_fit, Xpmlp, problem)
                    found.setdefault(name, []).append((worker.run()[0], worker.run()[0]))
    return {
        "shape": problem.shape,
        "batch": problem.batch,
        "rows": problem.rows,
        "epochs": problem.epochs,
        "seconds": {
            name: {"first": median(a for a, _ in pairs), "second": median(b for _, b in pairs)}
            for name, pairs in found.items()
        },
    }


def report(record: dict[str, Any]) -> str:
    """Two Markdown tables."""
    fits = [
        [
            f"{case['shape']}, batch {case['batch']}, {case['epochs']} epochs of {case['rows']}",
            name,
            f"{times['first']:.3f}",
            f"{times['second']:.3f}",
        ]
        for case in record["first_fits"]
        for name, times in case["seconds"].items()
    ]
    lines = [
        headline(record["environment"]),
        f"Medians of {record['rounds']} fresh interpreters each.",
        "",
        table(["import", "s"], ([name, f"{s:.3f}"] for name, s in record["imports"].items())),
        "",
        "xpmlp is imported already; the first fit of a process includes what is compiled in it, or "
        "read from the cache on disk.",
        "",
        table(["", "", "first fit, s", "second, s"], fits, left=2),
    ]
    return "\n".join(lines)
