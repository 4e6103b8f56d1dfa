"""Where the time of a training step goes, stage by stage.

To be called where Numba is not found: with it, steps are compiled as a whole.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any
from unittest.mock import patch

from bench.contenders import Xpmlp, make_fit
from bench.problem import Problem
from xpmlp.optimizers import Adam
from xpmlp.program import Objective, Program
from xpmlp.step import Dataset

# The methods that make up a stage; what one calls of another counts for the other.
STAGES: dict[str, list[tuple[type, str]]] = {
    "gather": [(Dataset, "stage")],
    "forward": [(Program, "forward")],
    "loss": [(Objective, "forward"), (Objective, "backward")],
    "backward": [(Program, "backward")],
    "update": [(Adam, "advance"), (Adam, "apply"), (Adam, "flush")],
}


def profile(problem: Problem) -> dict[str, float]:
    """Microseconds a step of each stage; the rest is the loop around them and the start of fit."""
    fit = make_fit(Xpmlp, problem)
    fit()
    clock = Clock()
    patches = [
        patch.object(owner, method, clock.timed(stage, getattr(owner, method)))
        for stage, methods in STAGES.items()
        for owner, method in methods
    ]
    for each in patches:
        each.start()
    try:
        clock.timed("rest", fit)()
    finally:
        for each in patches:
            each.stop()
    return {stage: clock.seconds[stage] / problem.steps * 1e6 for stage in (*STAGES, "rest")}


class Clock:
    """Adds up the seconds of each stage, without those of the stages called inside it."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys((*STAGES, "rest"), 0.0)
        self._inside = 0.0

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, whose time counts for `stage`."""

        def run(*arguments: Any, **options: Any) -> Any:
            before, self._inside = self._inside, 0.0
            start = perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                elapsed = perf_counter() - start
                self.seconds[stage] += elapsed - self._inside
                self._inside = before + elapsed

        return run
