"""Learning-rate schedules: callables from the number of finished updates to a learning rate.

The first update has step 0. Any callable ``step -> float`` can be given in place of these.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from xpmlp.errors import check_number


@dataclass(frozen=True)
class Schedule:
    """A learning rate that changes over the updates; derive from it to add one."""

    name: ClassVar[str]
    learning_rate: float

    def __post_init__(self) -> None:
        check_number("learning_rate", self.learning_rate, minimum=0)

    @abstractmethod
    def __call__(self, step: int) -> float:
        """The learning rate of the update after `step` finished ones."""

    def over(self, n_steps: int) -> Schedule:
        """The same schedule, spread over `n_steps` updates if its own number is None."""
        return self


@dataclass(frozen=True)
class Constant(Schedule):
    """Always `learning_rate`."""

    name = "constant"

    def __call__(self, step: int) -> float:
        return self.learning_rate


@dataclass(frozen=True)
class InvScaling(Schedule):
    """``learning_rate / (step + 1) ** power``."""

    power: float = 0.5
    name = "invscaling"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("power", self.power, minimum=0)

    def __call__(self, step: int) -> float:
        return float(self.learning_rate / (step + 1) ** self.power)


@dataclass(frozen=True)
class Step(Schedule):
    """Multiplied by `gamma` after every `step_size` updates."""

    step_size: int = 1000
    gamma: float = 0.1
    name = "step"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("step_size", self.step_size, minimum=1, integer=True)
        check_number("gamma", self.gamma, minimum=0)

    def __call__(self, step: int) -> float:
        return self.learning_rate * _power(self.gamma, step // self.step_size)


@dataclass(frozen=True)
class Exponential(Schedule):
    """``learning_rate * gamma ** step``."""

    gamma: float = 0.999
    name = "exponential"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("gamma", self.gamma, minimum=0)

    def __call__(self, step: int) -> float:
        return self.learning_rate * _power(self.gamma, step)


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from `learning_rate` to `final` (Loshchilov & Hutter 2017).

    Parameters
    ----------
    learning_rate : float
        The first rate.
    n_steps : int, optional
        Updates until `final` is reached. None: all updates of the call of ``fit``.
    final : float, default 0.0
        The last rate.
    """

    n_steps: int | None = None
    final: float = 0.0
    name = "cosine"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_steps(self.n_steps, minimum=1)
        check_number("final", self.final, minimum=0)

    def over(self, n_steps: int) -> Cosine:
        return self if self.n_steps else replace(self, n_steps=n_steps)

    def __call__(self, step: int) -> float:
        return _anneal(self.learning_rate, self.final, step / _steps(self))


@dataclass(frozen=True)
class OneCycle(Schedule):
    """Up to `learning_rate` and down again in `n_steps` (Smith & Topin 2018), by half cosines.

    Parameters
    ----------
    learning_rate : float
        The highest rate.
    n_steps : int, optional
        Updates in the cycle; afterwards the last rate stays. None: all of the call of ``fit``.
    warmup : float, default 0.3
        The part of the cycle in which the rate rises, in (0, 1).
    start_factor, final_factor : float, default 1/25 and 4e-6
        First and last rate as a part of the highest.
    """

    n_steps: int | None = None
    warmup: float = 0.3
    start_factor: float = 1 / 25
    final_factor: float = 4e-6
    name = "one_cycle"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_steps(self.n_steps, minimum=2)
        check_number(
            "warmup", self.warmup, minimum=0, maximum=1, open_minimum=True, open_maximum=True
        )
        check_number("start_factor", self.start_factor, minimum=0)
        check_number("final_factor", self.final_factor, minimum=0)

    def over(self, n_steps: int) -> OneCycle:
        return self if self.n_steps else replace(self, n_steps=max(2, n_steps))

    def __call__(self, step: int) -> float:
        highest, last = self.learning_rate, _steps(self) - 1
        peak = self.warmup * _steps(self) - 1
        if step <= peak:
            return _anneal(highest * self.start_factor, highest, step / peak if peak else 1.0)
        down = (step - peak) / (last - peak) if last > peak else 1.0
        return _anneal(highest, highest * self.final_factor, down)


@dataclass(frozen=True)
class WarmUp(Schedule):
    """Linear rise over `n_steps` updates to `learning_rate`, then `then`, or constant.

    Parameters
    ----------
    learning_rate : float
        The rate that the rise leads to.
    n_steps : int, default 100
        Update ``n_steps - 1`` is the first at the full rate.
    then : callable, optional
        The schedule of the updates after, its step counted from there.
    """

    n_steps: int = 100
    then: Callable[[int], float] | None = None
    name = "warmup"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("n_steps", self.n_steps, minimum=1, integer=True)
        if self.then is not None and not callable(self.then):
            raise TypeError(f"then must be a callable step -> float or None, got {self.then!r}")

    def over(self, n_steps: int) -> WarmUp:
        if not isinstance(self.then, Schedule):
            return self
        return replace(self, then=self.then.over(max(1, n_steps - self.n_steps)))

    def __call__(self, step: int) -> float:
        if step < self.n_steps:
            return self.learning_rate * (step + 1) / self.n_steps
        return self.learning_rate if self.then is None else self.then(step - self.n_steps)


def _check_steps(n_steps: int | None, minimum: int) -> None:
    if n_steps is not None:
        check_number("n_steps", n_steps, minimum=minimum, integer=True)


def _steps(schedule: Cosine | OneCycle) -> int:
    if schedule.n_steps is None:
        raise ValueError(f"{schedule.name} has n_steps=None: give a number, or leave it to fit")
    return schedule.n_steps


def _power(base: float, exponent: int) -> float:
    try:
        return float(base**exponent)
    except OverflowError:  # an optimizer refuses the rate and names the step
        return math.inf


def _anneal(start: float, end: float, done: float) -> float:
    """From `start` to `end` along half a cosine; `done` beyond 1 stays at `end`."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


SCHEDULES: dict[str, type[Schedule]] = {
    cls.name: cls for cls in (Constant, InvScaling, Step, Exponential, Cosine, OneCycle, WarmUp)
}
