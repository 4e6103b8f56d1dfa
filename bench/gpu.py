"""Time of a training step on a GPU, beside other libraries, its products and its memory traffic."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from bench.data import out_option, rounds_option
from bench.environment import environment, headline, write
from bench.gpu_check import card
from bench.gpu_contenders import LEARNING_RATE, Task
from bench.gpu_tasks import (
    CONTENDERS,
    MATRIX,
    PRECISIONS,
    TOLERANCE,
    UnequalLosses,
    fit_from_host,
    measure,
    report,
    tasks,
)
from bench.problem import parse_shape, whole_numbers
from bench.workers import Worker

# What a whole fit is timed on, from NumPy arrays.
WHOLE = Task((784, 256, 128, 10), 128, 1, batches=469)
SHAPES = ",".join("-".join(map(str, widths)) for widths in MATRIX)


@click.command()
@click.option("--shapes", default=SHAPES, show_default=True, help="Networks.")
@click.option(
    "--batch", "batches", callback=whole_numbers, help="Batch sizes. Default: those of each shape."
)
@click.option("--precision", default=",".join(PRECISIONS), show_default=True, help="Of products.")
@rounds_option(5)
@out_option
def gpu(shapes: str, batches: list[int] | None, precision: str, rounds: int, out: Path) -> None:
    """Time of a training step on a GPU; needs one."""
    from xpmlp import available_backends, get_backend

    state = available_backends().get("cupy", "not known")
    if state != "usable":
        click.echo(f"no GPU to measure on: {state}", err=True)
        sys.exit(1)
    backend = get_backend("cuda", "cupy", fallback=False)
    precisions = precision.split(",")
    if unknown := set(precisions) - set(PRECISIONS):
        raise click.BadParameter(f"expected some of {','.join(PRECISIONS)}, got {min(unknown)!r}")
    cases: list[dict[str, Any]] = []
    for task in tasks(map(parse_shape, shapes.split(",")), precisions, batches):
        click.echo(f"{task.name} ...", err=True)
        try:
            cases.append(measure(task, CONTENDERS, rounds))
        except UnequalLosses as error:
            raise click.ClickException(str(error)) from None
    with Worker() as worker:
        whole = worker.call(fit_from_host, WHOLE, 5)
    record: dict[str, Any] = {
        "environment": environment(),
        "device": {"name": backend.device, "version": backend.version(), **card(backend)},
        "configuration": {
            "optimizer": f"Adam, learning rate {LEARNING_RATE}",
            "rounds": rounds,
            "tolerance_of_losses": TOLERANCE,
        },
        "cases": cases,
        "fit_from_numpy": whole,
    }
    write(out / "gpu.json", record)
    text = [
        headline(record["environment"]),
        f"{record['device'].get('card')}, {backend.version()}. Median (min to max) of {rounds} "
        "interleaved calls, each contender in a process of its own, after a first call that "
        "compiles.",
        "",
        report(cases),
        "",
        f"fit of {whole['rows']:.0f} rows in NumPy arrays, {WHOLE.name}: "
        f"{whole['seconds_an_epoch']:.3f} s an epoch.",
    ]
    (out / "gpu.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    click.echo("\n".join(text))
