"""The measurements of ``python -m bench cpu`` in Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Any

from bench.environment import headline


def table(head: Iterable[str], rows: Iterable[Iterable[str]], left: int = 1) -> str:
    """A Markdown table; all columns but the first `left` are aligned to the right."""
    head = list(head)
    rules = [" --- " if place < left else " ---: " for place in range(len(head))]
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join(rules) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def steps_report(record: dict[str, Any]) -> str:
    """What the numbers mean, and a table for each case."""
    configuration = record["configuration"]
    parts = [
        headline(record["environment"]),
        f"{configuration['dtype']}, {configuration['activations']}, {configuration['loss']}, "
        f"{configuration['optimizer']}. Times: median (min to max) of {configuration['rounds']} "
        "interleaved calls of fit, each contender in a process of its own. Ratios: median of the "
        "rounds' ratios. First call: what the first one in a process takes beyond that, with "
        "nothing compiled before.",
        *missing(record),
    ]
    for case in record["cases"]:
        parts += ["", f"### {title(case)}", "", quality(case), "", case_table(case)]
        if "profile" in case:
            shares = ", ".join(f"{stage} {us:.1f}" for stage, us in case["profile"].items())
            parts += ["", f"Without Numba, µs a step by stage: {shares}."]
    return "\n".join(parts)


def title(case: dict[str, Any]) -> str:
    """The case in a line."""
    epochs = "1 epoch" if case["epochs"] == 1 else f"{case['epochs']} epochs"
    return (
        f"{case['shape']}, batch {case['batch']} "
        f"({case['data']}; {case['rows']} rows, {epochs} a call)"
    )


def case_table(case: dict[str, Any]) -> str:
    """One row a contender."""
    rows = []
    for name, found in case["contenders"].items():
        times = found["seconds"]
        low, high = (each / case["steps"] * 1e6 for each in (min(times), max(times)))
        per_epoch = found["microseconds_a_step"] * case["steps"] / case["epochs"] / 1e6
        rows.append(
            [
                name,
                f"{found['microseconds_a_step']:.1f} ({low:.1f} to {high:.1f})",
                f"{per_epoch:.4f}",
                f"{found['to_products']:.2f}",
                f"{found['seconds_of_first_call'] - median(times):+.2f}",
            ]
        )
    head = ["", "µs a step", "s an epoch", "to GEMMs", "first call, +s"]
    return table(head, rows)


def missing(record: dict[str, Any]) -> list[str]:
    """What could not be measured, and why."""
    return [f"Missing: {name} ({reason})." for name, reason in record["missing"].items()]


def quality(case: dict[str, Any]) -> str:
    """What the check of the losses found, in a sentence."""
    spreads = case["differences_of_losses"]
    losses = case["contenders"]["xpmlp"]["losses_in_check"]
    return (
        f"Equal quality: in the order of the data the loss of the first epoch, {losses[0]:.4g}, "
        f"differs by at most {spreads['first']:.1e}, of the last, {losses[-1]:.4g}, by "
        f"{spreads['last']:.1e}."
    )
