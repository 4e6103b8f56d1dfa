"""Epoch time and peak memory on the CPU, beside scikit-learn and the bare matrix products."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import click

from bench import contenders
from bench.contenders import CONTENDERS, Products, ScikitLearn, Xpmlp
from bench.data import MIN_ROWS, N_TRAIN, data_option, fashion_mnist, find, out_option
from bench.environment import environment, headline, write
from bench.memory import METHOD, peak_megabytes

# For the check alone Adam's epsilon is so small that it does not matter where it is added: with
# 1e-8 the losses differ by up to 7e-3 at batch 32. What is left is rounding, which 625 steps
# amplify: 2e-11 in float64 and 4e-4 in float32 were the largest differences measured over batches
# of 32, 200 and 1024 of 2,100 and 20,000 rows.
CHECK_EPSILON = 1e-16
TOLERANCE = {"float64": 1e-8, "float32": 2e-3}


def _whole_numbers(context: Any, parameter: Any, value: str) -> list[int]:
    try:
        numbers = [int(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"expected whole numbers such as 32,200, got {value!r}") from None
    if min(numbers) < 1:
        raise click.BadParameter(f"expected numbers from 1 on, got {value!r}")
    return numbers


@click.command()
@click.option(
    "--batch", "batches", default="32,200,1024", show_default=True, callback=_whole_numbers,
    help="Batch sizes.",
)  # fmt: skip
@click.option(
    "--rows", default=20_000, show_default=True, type=click.IntRange(MIN_ROWS, N_TRAIN),
    help="Samples in an epoch.",
)  # fmt: skip
@click.option(
    "--rounds", default=9, show_default=True, type=click.IntRange(1),
    help="Timed epochs of each contender.",
)  # fmt: skip
@click.option(
    "--dtype", default="float32", show_default=True, type=click.Choice(["float32", "float64"])
)
@data_option
@out_option
def cpu(
    batches: list[int], rows: int, rounds: int, dtype: str, data: Path | None, out: Path
) -> None:
    """Epoch time and peak memory, beside scikit-learn and the matrix products alone."""
    path = find(data)
    X, y = fashion_mnist("train", path, dtype, rows)
    missing = contenders.missing()
    names = [name for name in CONTENDERS if name not in missing]

    results = []
    for batch in batches:
        click.echo(f"batch {batch}: quality, times, memory", err=True)
        losses = check_quality(names, X, y, batch)
        seconds = time_rounds(names, X, y, batch, rounds)
        for name in names:
            results.append(
                {
                    "batch": batch,
                    "contender": name,
                    "loss_in_check": losses.get(name),
                    "seconds": seconds[name],
                    "median": median(seconds[name]),
                    "min": min(seconds[name]),
                    "max": max(seconds[name]),
                    "peak_megabytes": peak_megabytes(name, path, rows, dtype, batch),
                }
            )

    record = {
        "environment": environment(),
        "configuration": {
            "data": f"Fashion-MNIST, the first {rows} training images, pixels / 255",
            "network": [contenders.N_FEATURES, *contenders.HIDDEN, contenders.N_CLASSES],
            "activations": "relu, softmax at the output",
            "loss": "log_loss",
            "optimizer": f"Adam, learning rate {contenders.LEARNING_RATE}",
            "dtype": dtype,
            "batches": batches,
            "rounds": rounds,
            "memory": METHOD,
            "tolerance_of_losses": TOLERANCE[dtype],
        },
        "missing": missing,
        "results": results,
    }
    without = "" if find_spec("numba") else "-without-numba"
    write(out / f"cpu-{dtype}{without}.json", record)
    click.echo(report(record))


def check_quality(names: list[str], X: Any, y: Any, batch: int) -> dict[str, float]:
    """The loss of one epoch in the order of the data; an error unless all have the same."""
    weights = contenders.initial_weights(X.dtype.name)
    losses = {}
    for name in names:
        contender = CONTENDERS[name](X, y, batch, weights, shuffle=False, epsilon=CHECK_EPSILON)
        loss = contender.epoch()
        if loss is not None:
            losses[name] = loss
    for (one, a), (other, b) in combinations(losses.items(), 2):
        if not abs(a - b) <= TOLERANCE[X.dtype.name] * abs(b):
            raise click.ClickException(
                f"batch {batch}: unequal quality, the losses after one epoch are {one} {a:.6g} "
                f"and {other} {b:.6g}; no times"
            )
    return losses


def time_rounds(
    names: list[str], X: Any, y: Any, batch: int, rounds: int
) -> dict[str, list[float]]:
    """Seconds of each epoch. In a round each contender runs one; who is first rotates."""
    weights = contenders.initial_weights(X.dtype.name)
    running = {name: CONTENDERS[name](X, y, batch, weights) for name in names}
    for contender in running.values():
        contender.epoch()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for shift in range(rounds):
        first = shift % len(names)
        for name in names[first:] + names[:first]:
            start = perf_counter()
            running[name].epoch()
            seconds[name].append(perf_counter() - start)
    return seconds


def report(record: dict[str, Any]) -> str:
    """A Markdown table with one row a batch size."""
    configuration, missing = record["configuration"], record["missing"]
    names = [name for name in CONTENDERS if name not in missing]
    ratios = [
        (above, below)
        for above, below in ((Xpmlp.name, Products.name), (ScikitLearn.name, Xpmlp.name))
        if above in names and below in names
    ]
    head = [
        "batch",
        *(f"{name}, s" for name in names),
        *(f"{above} / {below}" for above, below in ratios),
        *(f"{name}, MB" for name in names),
    ]
    rows = []
    for batch in configuration["batches"]:
        of = {r["contender"]: r for r in record["results"] if r["batch"] == batch}
        times = ["{median:.3f} ({min:.3f} to {max:.3f})".format(**of[name]) for name in names]
        shares = [
            f"{paired_ratio(of[above]['seconds'], of[below]['seconds']):.2f}"
            for above, below in ratios
        ]
        peaks = [f"{of[name]['peak_megabytes']:.1f}" for name in names]
        rows.append([f"{batch}", *times, *shares, *peaks])
    lines = [
        headline(record["environment"]),
        "",
        quality(record),
        "",
        f"{configuration['data']}, {configuration['dtype']}, "
        f"{'-'.join(map(str, configuration['network']))}, {configuration['optimizer']}. Seconds "
        f"an epoch: median (min to max) of {configuration['rounds']} interleaved rounds. Ratios: "
        f"median of the rounds' ratios. Memory: {configuration['memory']}.",
        "",
        *(f"Missing: {name} ({reason})." for name, reason in missing.items()),
        *([""] if missing else []),
        "| " + " | ".join(head) + " |",
        "|" + " ---: |" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    return "\n".join(lines)


def quality(record: dict[str, Any]) -> str:
    """What :func:`check_quality` found, in a sentence."""
    losses: dict[int, list[float]] = {}
    for result in record["results"]:
        if result["loss_in_check"] is not None:
            losses.setdefault(result["batch"], []).append(result["loss_in_check"])
    if min(map(len, losses.values())) < 2:
        return "Quality not compared: no peer."
    spread = max(max(values) / min(values) - 1 for values in losses.values())
    return f"Equal quality: the losses of an unshuffled epoch differ by at most {spread:.1e}."


def paired_ratio(above: list[float], below: list[float]) -> float:
    """The median over rounds: what slows a whole round down does not move it."""
    return median(a / b for a, b in zip(above, below, strict=True))
