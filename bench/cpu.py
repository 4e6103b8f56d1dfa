"""Time of a training step on the CPU, beside other libraries and the bare matrix products."""

from __future__ import annotations

from contextlib import ExitStack
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

import click

from bench.contenders import (
    LEARNING_RATE,
    Contender,
    Products,
    ScikitLearn,
    WithoutNumba,
    Xpmlp,
    make_fit,
)
from bench.data import MIN_ROWS, data_option, find, out_option, rounds_option
from bench.environment import environment, write
from bench.peers import Jax, JaxProducts, Torch, TorchCompiled, TorchFused, TorchProducts
from bench.plots import steps_plot
from bench.problem import MATRIX, Problem, problems, whole_numbers
from bench.profile import profile
from bench.report import steps_report
from bench.workers import Worker, interleave, paired_ratio, threads

CONTENDERS: dict[str, type[Contender]] = {
    contender.name: contender
    for contender in (
        Xpmlp, WithoutNumba, ScikitLearn, Torch, TorchFused, TorchCompiled, Jax,
        Products, TorchProducts, JaxProducts,
    )
}  # fmt: skip
PEERS = ("sklearn", "torch", "jax")  # what --peers chooses from

# For the check alone Adam's epsilon is so small that it does not matter where it is added: with
# 1e-8 the losses differ by up to 7e-3 at batch 32. What is left is rounding. In float64 the losses
# of all cases of MATRIX then differ by up to 3e-10. In float32 a gradient that is nothing but
# rounding moves its weight by a full step: by up to 8e-3, and 3.5e-2 with the widest network.
CHECK_EPSILON = 1e-16
TOLERANCE = {"float64": 1e-8, "float32": 5e-2}


def _peers(context: Any, parameter: Any, value: str) -> list[str]:
    names = [name for name in value.split(",") if name]
    if unknown := set(names) - set(PEERS):
        raise click.BadParameter(f"expected some of {','.join(PEERS)}, got {min(unknown)!r}")
    return names


@click.command()
@click.option(
    "--peers", default=",".join(PEERS), show_default=True, callback=_peers,
    help="Libraries to compare with.",
)  # fmt: skip
@click.option("--shapes", default=",".join(MATRIX), show_default=True, help="Networks.")
@click.option(
    "--batch", "batches", callback=whole_numbers, help="Batch sizes. Default: those of each shape."
)
@click.option(
    "--rows", type=click.IntRange(MIN_ROWS, 60_000),
    help="Samples in an epoch. Default: those of each shape.",
)  # fmt: skip
@click.option(
    "--epochs", type=click.IntRange(1),
    help="Epochs of a timed call. Default: those of each shape and batch.",
)  # fmt: skip
@rounds_option()
@click.option(
    "--dtype", default="float32", show_default=True, type=click.Choice(["float32", "float64"])
)
@click.option("--profile", "profiled", is_flag=True, help="Show the stages of a step, too.")
@data_option
@out_option
def cpu(
    peers: list[str],
    shapes: str,
    batches: list[int] | None,
    rows: int | None,
    epochs: int | None,
    rounds: int,
    dtype: str,
    profiled: bool,
    data: Path | None,
    out: Path,
) -> None:
    """Time of a training step, beside other libraries and the matrix products alone."""
    contenders = [c for c in CONTENDERS.values() if c.library in peers or c.library not in PEERS]
    missing = {c.name: reason for c in contenders if (reason := c.missing())}
    present = [c for c in contenders if c.name not in missing]
    cases = []
    for shape in shapes.split(","):
        for problem in problems(shape, batches, rows, epochs, dtype, find(data)):
            click.echo(f"{shape}, batch {problem.batch} ...", err=True)
            cases.append(measure(present, problem, rounds, profiled))
    record = {
        "environment": environment(),
        "configuration": {
            "activations": "relu, softmax at the output",
            "loss": "log_loss",
            "optimizer": f"Adam, learning rate {LEARNING_RATE}",
            "dtype": dtype,
            "rounds": rounds,
            "tolerance_of_losses": TOLERANCE[dtype],
        },
        "missing": missing,
        "cases": cases,
    }
    write(out / f"cpu-{dtype}.json", record)
    steps_plot(record, out / f"cpu-{dtype}.png")
    click.echo(steps_report(record))


def measure(
    contenders: list[type[Contender]], problem: Problem, rounds: int, profiled: bool
) -> dict[str, Any]:
    """Quality and times of one network at one batch size."""
    with ExitStack() as stack:
        workers = {c.name: stack.enter_context(Worker(c.hidden)) for c in contenders}
        first_calls, losses = first_calls_of(workers, problem)
        spreads = check_quality(losses, problem)
        for name, worker in workers.items():
            worker.prepare(make_fit, CONTENDERS[name], problem)
            worker.run()
        seconds = interleave(workers, rounds)
        case: dict[str, Any] = {
            "shape": problem.shape,
            "batch": problem.batch,
            "rows": problem.rows,
            "epochs": problem.epochs,
            "steps": problem.steps,
            "data": problem.origin,
            "differences_of_losses": spreads,
            "contenders": {
                name: {
                    "losses_in_check": losses.get(name),
                    "seconds_of_first_call": first_calls[name],
                    "seconds": times,
                    "microseconds_a_step": median(times) / problem.steps * 1e6,
                    "to_products": paired_ratio(times, seconds[Products.name]),
                    "threads": workers[name].call(threads),
                }
                for name, times in seconds.items()
            },
        }
    if profiled:
        with Worker(WithoutNumba.hidden) as worker:
            case["profile"] = worker.call(profile, problem)
    return case


def first_calls_of(
    workers: dict[str, Worker], problem: Problem
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Seconds and losses of a call in the order of the data, the first in each fresh process."""
    seconds, losses = {}, {}
    for name, worker in workers.items():
        worker.prepare(make_fit, CONTENDERS[name], problem, False, CHECK_EPSILON)
        seconds[name], found = worker.run()
        if found:
            losses[name] = found
    return seconds, losses


def check_quality(losses: dict[str, list[float]], problem: Problem) -> dict[str, float]:
    """The largest relative difference of the losses in the first and the last epoch.

    An error unless both are small.
    """
    spreads = {}
    for which, place in (("first", 0), ("last", -1)):
        values = {name: found[place] for name, found in losses.items()}
        spreads[which] = max(values.values()) / min(values.values()) - 1
        if not (all(map(isfinite, values.values())) and spreads[which] <= TOLERANCE[problem.dtype]):
            raise click.ClickException(
                f"{problem.shape}, batch {problem.batch}: unequal quality, the losses of the "
                f"{which} epoch are {values}; no times"
            )
    return spreads
