"""Times of training steps on a GPU, contender by contender."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from math import isfinite
from statistics import median
from time import perf_counter
from typing import Any

from bench.gpu_contenders import Contender, Memory, Products, Task, Xpmlp, XpmlpEager
from bench.gpu_peers import Jax, Torch, TorchCompiled, TorchGraph
from bench.report import table
from bench.workers import Worker, interleave
from xpmlp import Dense, Network, fit

CONTENDERS: tuple[type[Contender], ...] = (
    Xpmlp, XpmlpEager, Torch, TorchCompiled, TorchGraph, Jax, Products, Memory,
)  # fmt: skip
# Of each network the batches, each with the steps of a timed call.
MATRIX: dict[tuple[int, ...], dict[int, int]] = {
    (784, 256, 128, 10): {32: 1024, 128: 1024, 1024: 512, 8192: 128},
    (1024, 1024, 1024, 1024, 1024, 10): {8192: 32},
    (4096, 4096, 4096, 4096, 4096, 10): {8192: 8},
}
PRECISIONS = ("ieee", "tf32", "bfloat16")
# How much the last losses of the first calls may differ. What is rounded to fewer bits is rounded
# in other places by other libraries, and drifts apart from step to step.
TOLERANCE = {"ieee": 1e-2, "tf32": 3e-2, "bfloat16": 1e-1}


class UnequalLosses(Exception):
    """Contenders that do not do the same, so that their times cannot be compared."""


def make_run(contender: type[Contender], task: Task) -> Callable[[], float]:
    """The steps of a contender."""
    return contender(task).run


def tasks(
    shapes: Iterable[tuple[int, ...]], precisions: Iterable[str], batches: list[int] | None = None
) -> list[Task]:
    """The tasks of some networks of :data:`MATRIX`, or of others with `batches`."""
    made = []
    for widths in shapes:
        steps = MATRIX.get(widths, {128: 1024})
        for batch in batches or steps:
            made += [Task(widths, batch, steps.get(batch, 64), name) for name in precisions]
    return made


def measure(task: Task, contenders: Iterable[type[Contender]], rounds: int) -> dict[str, Any]:
    """The losses and times of contenders, each in a process of its own.

    The first call warms up: it compiles, captures and plans. Its last loss is compared.

    Raises
    ------
    UnequalLosses
        If the losses differ: there are no times then.
    """
    missing = {c.name: reason for c in contenders if (reason := c.missing(task))}
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        workers = {}
        for contender in contenders:
            if contender.name in missing:
                continue
            worker = stack.enter_context(Worker())
            try:
                worker.prepare(make_run, contender, task)
                seconds, loss = worker.run()
            except Exception as error:  # of whatever library: the others are measured all the same
                missing[contender.name] = f"{type(error).__name__}: {error}"
                continue
            workers[contender.name] = worker
            found[contender.name] = {"seconds_of_first_call": seconds}
            if contender.trains:
                found[contender.name]["loss"] = loss
        check(task, {name: one["loss"] for name, one in found.items() if "loss" in one})
        for name, times in interleave(workers, rounds).items() if workers else ():
            found[name]["seconds"] = times
            found[name]["microseconds_a_step"] = median(times) / task.steps * 1e6
    return {
        "task": task.name,
        "widths": list(task.widths),
        "batch": task.batch,
        "precision": task.precision,
        "steps": task.steps,
        "missing": missing,
        "contenders": found,
    }


def check(task: Task, losses: dict[str, float]) -> None:
    """Raise :class:`UnequalLosses` unless the losses are finite and differ by little."""
    values = losses.values()
    if not values:
        raise UnequalLosses(f"{task.name}: no contender can be run")
    finite = all(map(isfinite, values))
    if not finite or max(values) - min(values) > TOLERANCE[task.precision] * min(values):
        raise UnequalLosses(f"{task.name}: the losses are {losses}; no times")


def report(cases: list[dict[str, Any]]) -> str:
    """A table for each case, in Markdown."""
    parts = []
    for case in cases:
        rows = []
        for name, one in case["contenders"].items():
            times = [seconds / case["steps"] * 1e6 for seconds in one["seconds"]]
            loss = f"{one['loss']:.5f}" if "loss" in one else ""
            rows.append(
                [
                    name,
                    f"{one['microseconds_a_step']:.1f} ({min(times):.1f} to {max(times):.1f})",
                    f"{one['seconds_of_first_call']:.2f}",
                    loss,
                ]
            )
        head = ["", "µs a step", "first call, s", "loss after it"]
        parts += [f"### {case['task']}", "", table(head, rows), ""]
        parts += [f"Missing: {name} ({why})." for name, why in case["missing"].items()]
        parts += [""] if case["missing"] else []
    return "\n".join(parts).rstrip()


def fit_from_host(task: Task, epochs: int) -> dict[str, float]:
    """Seconds of a whole ``fit`` of NumPy arrays, the second of two calls, and of an epoch."""
    X, y = task.data()
    hidden = [Dense(units, "relu") for units in task.widths[1:-1]]
    layers = [*hidden, Dense(task.widths[-1], "softmax")]
    for _ in range(2):  # the first one compiles
        network = Network(task.widths[0], layers, device=task.device, dtype="float32", seed=0)
        start = perf_counter()
        fit(network, X, y, loss="log_loss", epochs=epochs, batch_size=task.batch, verbose=0)
        seconds = perf_counter() - start
    return {"seconds": seconds, "seconds_an_epoch": seconds / epochs, "rows": float(len(X))}
