"""How the time of an epoch grows with rows, width and depth."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np

from bench.contenders import Xpmlp, make_fit
from bench.data import out_option, rounds_option
from bench.environment import environment, headline, write
from bench.plots import scaling_plot
from bench.problem import Problem, whole_numbers
from bench.report import table
from bench.workers import Worker, interleave

N_FEATURES, N_CLASSES, BATCH, ROWS = 64, 10, 256, 8192
SECONDS = 2.0  # of a call, were its steps not compiled

# What grows, and the problem of a size.
SERIES: dict[str, tuple[str, Callable[[int], Problem]]] = {
    "rows": ("rows of 64-64-64-10", lambda size: _problem((64, 64), size)),
    "width": ("units of each of two hidden layers", lambda size: _problem((size, size), ROWS)),
    "depth": ("hidden layers of 128 units", lambda size: _problem((128,) * size, ROWS)),
}


def _problem(hidden: tuple[int, ...], rows: int) -> Problem:
    """With so many epochs a call that every size runs long enough to have its steps compiled."""
    once = Problem((N_FEATURES, *hidden, N_CLASSES), BATCH, rows)
    seconds = 2.5e-4 * once.steps + 6e-11 * once.n_parameters * rows  # about
    return replace(once, epochs=math.ceil(SECONDS / seconds))


@click.command()
@click.option(
    "--rows", default="10000,30000,100000,300000,1000000", show_default=True,
    callback=whole_numbers,
)  # fmt: skip
@click.option("--width", default="32,128,512,2048", show_default=True, callback=whole_numbers)
@click.option("--depth", default="1,2,4,8,16", show_default=True, callback=whole_numbers)
@rounds_option(5, "Timed calls of each size.")
@out_option
def scaling(rows: list[int], width: list[int], depth: list[int], rounds: int, out: Path) -> None:
    """Time of an epoch against rows, width and depth; synthetic data, float32."""
    sizes = {"rows": rows, "width": width, "depth": depth}
    if any(len(set(each)) < 2 for each in sizes.values()):
        raise click.BadParameter("expected at least two sizes of each quantity")
    record = {
        "environment": environment(),
        "batch": BATCH,
        "rows_of_width_and_depth": ROWS,
        "rounds": rounds,
        "series": {name: measure(name, sizes[name], rounds) for name in SERIES},
    }
    write(out / "scaling.json", record)
    scaling_plot(record, out / "scaling.png")
    click.echo(report(record))


def measure(name: str, sizes: list[int], rounds: int) -> dict[str, Any]:
    """Median seconds of an epoch of each size, and ``seconds = factor * size ** exponent``."""
    quantity, of_size = SERIES[name]
    problems = {str(size): of_size(size) for size in sizes}
    click.echo(f"{quantity} ...", err=True)
    with ExitStack() as stack:
        workers = {size: stack.enter_context(Worker()) for size in problems}
        for size, problem in problems.items():
            workers[size].prepare(make_fit, Xpmlp, problem)
            workers[size].run()
        calls = interleave(workers, rounds)
    seconds = [median(calls[size]) / problem.epochs for size, problem in problems.items()]
    exponent, offset = np.polyfit(np.log(sizes), np.log(seconds), 1)
    return {
        "quantity": quantity,
        "sizes": sizes,
        "seconds": seconds,
        "exponent": float(exponent),
        "factor": math.exp(offset),
    }


def report(record: dict[str, Any]) -> str:
    """A Markdown table with one row a quantity."""
    rows = [
        [
            found["quantity"],
            ", ".join(
                f"{size}: {seconds:.3f}"
                for size, seconds in zip(found["sizes"], found["seconds"], strict=True)
            ),
            f"{found['exponent']:.2f}",
        ]
        for found in record["series"].values()
    ]
    lines = [
        headline(record["environment"]),
        f"Seconds of an epoch, float32, batch {record['batch']}: medians of {record['rounds']} "
        "interleaved rounds. The exponent is the slope of the line that fits their logarithms.",
        "",
        table(["", "s an epoch", "exponent"], rows, left=2),
    ]
    return "\n".join(lines)
