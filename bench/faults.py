"""What is promised to hold when something goes wrong, tried at random: `docs/reliability.md`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import click

from bench import fault_files, fault_runs
from bench.data import out_option
from bench.environment import environment, headline, write
from bench.report import table
from bench.workers import Worker


@dataclass(frozen=True)
class Drill:
    """One kind of fault.

    Attributes
    ----------
    does : callable
        ``(folder, n, seed) -> found``, where ``found["held"]`` of ``found["tried"]`` times all went
        as promised.
    n : int
        How often, but for what is tried besides.
    promise : str
    bounds : dict of str to float
        Entries of what is found, and what they must stay below.
    """

    does: Callable[[Path, int, int], dict[str, Any]]
    n: int
    promise: str
    bounds: dict[str, float]


_REFUSED = "`ModelFileError`, no other error"
_LESS = {"megabytes": 200.0}
DRILLS = {
    "kill -9 in training": Drill(
        fault_runs.killed, 200, "goes on from its checkpoints to the same bits", {}
    ),
    "Ctrl-C in training": Drill(fault_runs.interrupted, 50, "leaves a usable model", {}),
    "disk full": Drill(fault_runs.disk_full, 20, "the old file loads, nothing else is left", {}),
    "model file cut off": Drill(fault_files.truncated, 200, _REFUSED, _LESS),
    "a bit of it flipped": Drill(fault_files.flipped, 1_000, _REFUSED, _LESS),
    "its header mutated": Drill(fault_files.mutated, 10_000, _REFUSED, _LESS),
    "its description mutated, signed anew": Drill(
        fault_files.signed_anew, 10_000, "a model, or " + _REFUSED, _LESS
    ),
    "a checkpoint mutated, signed anew": Drill(
        fault_files.checkpoints_signed_anew, 5_000, "a finite network, or refused", _LESS
    ),
    "planted pickles": Drill(fault_files.planted_pickles, 0, "refused, never executed", {}),
    "fit, predict, save, load": Drill(
        fault_runs.cycles, 500, "memory and open files do not grow", {"kilobytes": 10.0}
    ),
}


@click.command()
@click.option("--only", type=click.Choice([*DRILLS]), multiple=True, help="Default: all.")
@click.option("--share", default=1.0, show_default=True, help="Of the number of times, do this.")
@click.option("--seed", default=0, show_default=True)
@out_option
def faults(only: tuple[str, ...], share: float, seed: int, out: Path) -> None:
    """Kill, interrupt, damage, forge and fill up, at random; Linux, as root for the full disk.

    Writes faults.json if nothing was left out. The exit code is 1 if something did not hold.
    """
    found = {name: run(name, share, seed) for name in only or DRILLS}
    record = {"environment": environment(), "seed": seed, "share": share, "drills": found}
    if not only:
        write(out / "faults.json", record)
    click.echo(report(record))
    broken = [name for name, result in found.items() if not result["holds"]]
    if broken:
        raise click.ClickException(f"did not hold: {', '.join(broken)}")


def run(name: str, share: float, seed: int) -> dict[str, Any]:
    """What a drill finds, and whether it holds."""
    click.echo(f"{name} ...", err=True)
    drill = DRILLS[name]
    start = perf_counter()
    with TemporaryDirectory() as folder, Worker() as worker:
        try:
            found = worker.call(drill.does, Path(folder), max(1, round(share * drill.n)), seed)
        except Exception as error:  # a drill that could not be done has not held
            found = {"tried": 0, "held": 0, "outcomes": {"could not be done": repr(error)}}
    holds = 0 < found["tried"] == found["held"] and all(
        found[name] < bound for name, bound in drill.bounds.items()
    )
    return {**found, "holds": holds, "seconds": perf_counter() - start}


def report(record: dict[str, Any]) -> str:
    """A Markdown table."""
    rows = []
    for name, found in record["drills"].items():
        seen = [f"{what}: {count}" for what, count in found["outcomes"].items()]
        seen += [f"{found[unit]:.1f} {unit}" for unit in DRILLS[name].bounds if unit in found]
        held = f"{found['held']:,} of {found['tried']:,}" + ("" if found["holds"] else " (!)")
        seconds = f"{found['seconds']:.0f}"
        rows.append([name, DRILLS[name].promise, "; ".join(seen), held, seconds])
    lines = [
        headline(record["environment"]),
        f"Seed {record['seed']}. Memory: beyond what the process had before, at its highest; of "
        "cycles, how much more a cycle leaves behind, in the mean.",
        "",
        table(["fault", "promise", "seen", "held", "s"], rows, left=3),
    ]
    return "\n".join(lines)
