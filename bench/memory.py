"""Peak memory of fit, beside what a user may expect of it."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import click

from bench.contenders import Contender, ScikitLearn, Xpmlp
from bench.data import MIN_ROWS, data_option, find, out_option
from bench.environment import environment, headline, write
from bench.problem import Problem, parse_shape
from bench.report import table
from bench.workers import Worker

METHOD = (
    "tracemalloc, from before the model is made to after its first epoch, in a fresh process; "
    "data, imports and compiled code excluded; 1 MB = 10**6 bytes"
)
# Batch and rows of each shape. The smaller one has so many that a copy of them would show.
CASES = {"784-256-128-10": (200, 60_000), "784-2048-2048-10": (512, 10_240)}
ANY_CASE = (200, 60_000)
INPUTS = ("float32", "float64", "uint8")
SLACK = 30.0  # MB


@click.command()
@click.option("--shapes", default=",".join(CASES), show_default=True, help="Networks.")
@click.option(
    "--rows", type=click.IntRange(MIN_ROWS, 60_000),
    help="Samples. Default: those of each shape.",
)  # fmt: skip
@data_option
@out_option
def memory(shapes: str, rows: int | None, data: Path | None, out: Path) -> None:
    """Peak memory of fit in float32, from data of several types."""
    results = []
    for shape in shapes.split(","):
        batch, default_rows = CASES.get(shape, ANY_CASE)
        problem = Problem(parse_shape(shape), batch, rows or default_rows, path=find(data))
        for given in INPUTS:
            click.echo(f"{shape}, X of {given} ...", err=True)
            results.append(measure(problem, given))
    record = {"environment": environment(), "method": METHOD, "results": results}
    write(out / "memory.json", record)
    click.echo(report(record))


def measure(problem: Problem, given: str) -> dict[str, Any]:
    """Peaks beyond X of one type; an error if xpmlp takes more than it may."""
    bound = expected_megabytes(problem)
    peaks = {c.name: peak_megabytes(c, problem, given) for c in (Xpmlp, ScikitLearn)}
    if not peaks[Xpmlp.name] <= bound:
        raise click.ClickException(
            f"{problem.shape}, X of {given}: a peak of {peaks[Xpmlp.name]:.1f} MB beyond the "
            f"data, more than {bound:.1f} MB"
        )
    itemsize = {"float32": 4, "float64": 8, "uint8": 1}[given]
    return {
        "shape": problem.shape,
        "batch": problem.batch,
        "rows": problem.rows,
        "input": given,
        "data_megabytes": problem.rows * problem.widths[0] * itemsize / 1e6,
        "parameters_megabytes": problem.n_parameters * 4 / 1e6,
        "bound_megabytes": bound,
        "peak_megabytes": peaks,
    }


def expected_megabytes(problem: Problem) -> float:
    """Parameters, gradient, two moments and one more such vector; a batch; and :data:`SLACK`.

    A batch: the inputs, and of each layer the outputs and their error terms.
    """
    n_features, *units = problem.widths
    workspace = problem.batch * (n_features + 2 * sum(units))
    return (5 * problem.n_parameters + workspace) * 4 / 1e6 + SLACK


def peak_megabytes(contender: type[Contender], problem: Problem, given: str) -> float:
    """The highest memory in use by the model and one epoch, beyond the data.

    tracemalloc sees every allocation of NumPy and Python, so the number hardly varies.
    The peak resident set is not used: a child inherits its parent's on Linux, loading the data
    sets a mark that training may not reach, and it counts BLAS's own buffers, which all share.
    """
    with Worker() as worker:
        return float(worker.call(_peak, contender, problem, given))


def _peak(contender: type[Contender], problem: Problem, given: str) -> float:
    X, y = problem.data()
    X = (X * 255).astype(given) if given == "uint8" else X.astype(given)
    parameters = problem.parameters()
    # What is imported or compiled at first use is no memory of the epoch.
    contender(problem, X, y, *parameters).fit()
    tracemalloc.start()
    contender(problem, X, y, *parameters).fit()
    return tracemalloc.get_traced_memory()[1] / 1e6


def report(record: dict[str, Any]) -> str:
    """A Markdown table with one row for each network and type of data."""
    rows = [
        [
            f"{result['shape']}, batch {result['batch']}, {result['rows']} rows",
            result["input"],
            *(f"{peak:.1f}" for peak in result["peak_megabytes"].values()),
            f"{result['bound_megabytes']:.1f}",
            f"{result['data_megabytes']:.1f}",
        ]
        for result in record["results"]
    ]
    names = [f"{name}, MB" for name in record["results"][0]["peak_megabytes"]]
    lines = [
        headline(record["environment"]),
        f"Peak memory of fit beyond the data: {record['method']}. The bound on xpmlp's: five times "
        f"the parameters, a batch, {SLACK:.0f} MB; where it is less than the data, there was no "
        "copy of them.",
        "",
        table(["", "X", *names, "bound, MB", "data, MB"], rows, left=2),
    ]
    return "\n".join(lines)
