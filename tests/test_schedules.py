"""Every schedule against its formula and, where PyTorch has it, against PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pytest

from xpmlp.optimizers import SGD
from xpmlp.schedules import (
    SCHEDULES,
    Constant,
    Cosine,
    Exponential,
    InvScaling,
    OneCycle,
    Schedule,
    Step,
    WarmUp,
)

N_STEPS = 60


def half_cosine(start: float, end: float, done: float) -> float:
    """The weight of the start falls from 1 to 0 along half a cosine."""
    weight = (1 + math.cos(math.pi * done)) / 2
    return weight * start + (1 - weight) * end


def one_cycle(o: OneCycle, k: int) -> float:
    low, high, end = o.learning_rate * o.start_factor, o.learning_rate, o.n_steps - 1
    peak, final = o.warmup * o.n_steps - 1, o.learning_rate * o.final_factor
    if k <= peak:
        return half_cosine(low, high, k / peak)
    return half_cosine(high, final, min((k - peak) / (end - peak), 1))


@dataclass(frozen=True)
class Case:
    """A schedule, its formula, and PyTorch's name and arguments for it where it has them."""

    schedule: Schedule
    formula: Callable[[Any, int], float]
    torch: tuple[str, dict[str, Any]] | None = None
    until: int = N_STEPS
    """PyTorch's cosine rises again and its cycle ends in an error; ours stay where they are."""


CASES = {
    "constant": Case(Constant(0.3), lambda o, k: 0.3, ("ConstantLR", {"factor": 1.0})),
    "invscaling": Case(InvScaling(0.3), lambda o, k: 0.3 / math.sqrt(k + 1)),
    "invscaling power": Case(InvScaling(0.3, power=1.5), lambda o, k: 0.3 / (k + 1) ** 1.5),
    "step": Case(
        Step(0.3, step_size=7, gamma=0.5),
        lambda o, k: 0.3 * 0.5 ** math.floor(k / 7),
        ("StepLR", {"step_size": 7, "gamma": 0.5}),
    ),
    "step of one": Case(
        Step(0.3, step_size=1),
        lambda o, k: 0.3 * 0.1**k,
        ("StepLR", {"step_size": 1, "gamma": 0.1}),
    ),
    "exponential": Case(
        Exponential(0.3, gamma=0.9), lambda o, k: 0.3 * 0.9**k, ("ExponentialLR", {"gamma": 0.9})
    ),
    "cosine": Case(
        Cosine(0.3, n_steps=40),
        lambda o, k: half_cosine(0.3, 0.0, min(k / 40, 1)),
        ("CosineAnnealingLR", {"T_max": 40}),
        until=40,
    ),
    "cosine final": Case(
        Cosine(0.3, n_steps=25, final=0.05),
        lambda o, k: half_cosine(0.3, 0.05, min(k / 25, 1)),
        ("CosineAnnealingLR", {"T_max": 25, "eta_min": 0.05}),
        until=25,
    ),
    "one cycle": Case(
        OneCycle(0.3, n_steps=50),
        one_cycle,
        ("OneCycleLR", {"max_lr": 0.3, "total_steps": 50}),
        until=49,
    ),
    "one cycle options": Case(
        OneCycle(0.3, n_steps=41, warmup=0.77, start_factor=0.2, final_factor=0.01),
        one_cycle,
        # PyTorch's final factor is a part of its first rate.
        (
            "OneCycleLR",
            {
                "max_lr": 0.3,
                "total_steps": 41,
                "pct_start": 0.77,
                "div_factor": 5.0,
                "final_div_factor": 20.0,
            },
        ),
        until=40,
    ),
    "warmup": Case(WarmUp(0.3, n_steps=12), lambda o, k: 0.3 * min((k + 1) / 12, 1)),
    "warmup of one": Case(WarmUp(0.3, n_steps=1), lambda o, k: 0.3),
    "warmup then": Case(
        WarmUp(0.3, n_steps=12, then=Cosine(0.3, n_steps=20)),
        lambda o, k: 0.3 * (k + 1) / 12 if k < 12 else half_cosine(0.3, 0, min((k - 12) / 20, 1)),
    ),
    "warmup then a function": Case(
        WarmUp(0.3, n_steps=5, then=lambda k: 1 / (k + 2)),
        lambda o, k: 0.3 * (k + 1) / 5 if k < 5 else 1 / (k - 3),
    ),
}
IN_TORCH = {name: case for name, case in CASES.items() if case.torch}
# Without rates of their own beside the learning rate.
SCALABLE = {
    name: case
    for name, case in CASES.items()
    if not getattr(case.schedule, "then", None) and not getattr(case.schedule, "final", 0.0)
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def test_the_table_has_every_schedule():
    assert {type(case.schedule) for case in CASES.values()} == set(SCHEDULES.values())
    assert all(name == cls.name for name, cls in SCHEDULES.items())


@each_case
def test_equals_the_formula(case):
    rates = [case.schedule(k) for k in range(N_STEPS)]
    assert all(type(rate) is float for rate in rates)
    expected = [case.formula(case.schedule, k) for k in range(N_STEPS)]
    np.testing.assert_allclose(rates, expected, rtol=1e-13, atol=1e-17)


@pytest.mark.parametrize("case", IN_TORCH.values(), ids=IN_TORCH)
def test_equals_torch(case):
    torch = pytest.importorskip("torch")
    name, arguments = case.torch
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    theirs = getattr(torch.optim.lr_scheduler, name)(optimizer, **arguments)
    for step in range(case.until):
        rate = optimizer.param_groups[0]["lr"]
        assert case.schedule(step) == pytest.approx(rate, rel=1e-10, abs=1e-15), step
        optimizer.step()
        theirs.step()


@each_case
def test_is_a_function_of_the_step_alone(case):
    forwards = [case.schedule(k) for k in range(N_STEPS)]
    backwards = [case.schedule(k) for k in reversed(range(N_STEPS))]
    assert forwards == backwards[::-1]
    assert all(math.isfinite(rate) and rate >= 0 for rate in forwards)


@pytest.mark.parametrize("case", SCALABLE.values(), ids=SCALABLE)
def test_scales_with_the_learning_rate(case):
    doubled = replace(case.schedule, learning_rate=0.6)
    assert [doubled(k) for k in range(N_STEPS)] == pytest.approx(
        [2 * case.schedule(k) for k in range(N_STEPS)], rel=1e-14
    )


@each_case
def test_drives_an_optimizer(case):
    theta, grad = np.zeros(1), np.ones(1)
    optimizer = SGD(learning_rate=case.schedule)
    state = optimizer.init(theta)
    moves = []
    for _ in range(5):
        before = theta.copy()
        optimizer.update(theta, grad, state)
        moves.append(float(before[0] - theta[0]))
    assert moves == pytest.approx([case.schedule(k) for k in range(5)], rel=1e-12)


# --- First, highest and last rates --------------------------------------------------------------


def test_cosine_ends_at_its_final_rate_and_stays():
    schedule = Cosine(0.3, n_steps=10, final=0.01)
    assert schedule(0) == pytest.approx(0.3, rel=1e-15)
    assert [schedule(k) for k in (10, 11, 1000)] == pytest.approx([0.01] * 3, rel=1e-14)


@pytest.mark.parametrize("warmup", [0.1, 0.3, 0.5, 0.999])
@pytest.mark.parametrize("n_steps", [2, 3, 10, 1000])
def test_one_cycle_rises_to_its_rate_and_ends_at_its_last(n_steps, warmup):
    schedule = OneCycle(0.3, n_steps=n_steps, warmup=warmup)
    rates = [schedule(k) for k in range(n_steps)]
    top = int(np.argmax(rates))
    assert max(rates) <= 0.3 * (1 + 1e-15)
    assert np.all(np.diff(rates[: top + 1]) >= 0)
    assert np.all(np.diff(rates[top:]) <= 0)
    assert [rates[-1], schedule(10 * n_steps)] == pytest.approx([0.3 * 4e-6] * 2, rel=1e-9)


def test_one_cycle_starts_low_and_reaches_the_highest_rate():
    schedule = OneCycle(0.5, n_steps=100, warmup=0.25, start_factor=0.1)
    assert schedule(0) == pytest.approx(0.05)
    assert schedule(24) == pytest.approx(0.5)
    # A rise of one update starts at the top.
    assert OneCycle(0.5, n_steps=10, warmup=0.1)(0) == pytest.approx(0.5)


def test_warm_up_reaches_its_rate_at_its_last_update_and_hands_over():
    calls = []

    def then(step):
        calls.append(step)
        return 0.25

    schedule = WarmUp(0.5, n_steps=4, then=then)
    assert [schedule(k) for k in range(6)] == [0.125, 0.25, 0.375, 0.5, 0.25, 0.25]
    assert calls == [0, 1]


def test_warm_ups_can_be_nested():
    schedule = WarmUp(0.2, n_steps=2, then=WarmUp(0.6, n_steps=3, then=Exponential(0.6, gamma=0.5)))
    assert [schedule(k) for k in range(7)] == pytest.approx([0.1, 0.2, 0.2, 0.4, 0.6, 0.6, 0.3])


def test_zero_rates_are_allowed():
    assert Constant(0)(3) == 0
    assert Step(0.3, step_size=2, gamma=0)(2) == 0
    assert Cosine(0, n_steps=5)(2) == 0


def test_far_steps_do_not_overflow():
    for case in CASES.values():
        assert 0 <= case.schedule(10**7) <= 0.3


# --- Arguments ----------------------------------------------------------------------------------

# Option -> values outside its interval, for real numbers and for whole ones.
REAL = {
    "learning_rate": [-0.1],
    "power": [-0.5],
    "gamma": [-0.1],
    "final": [-1e-9],
    "warmup": [-0.1, 0, 0.0, 1, 1.0, 1.5],
    "start_factor": [-0.1],
    "final_factor": [-0.1],
}
WHOLE = {("Step", "step_size"): [0, -1], ("Cosine", "n_steps"): [0, -1]}
WHOLE |= {("OneCycle", "n_steps"): [1, 0, -5], ("WarmUp", "n_steps"): [0, -1]}
OPTIONS = [
    pytest.param(cls, field.name, id=f"{cls.__name__}-{field.name}")
    for cls in SCHEDULES.values()
    for field in fields(cls)
    if field.name != "then"
]


def make(cls: type[Schedule], **options: Any) -> Schedule:
    return cls(**{"learning_rate": 0.1, **options})


def outside(cls: type[Schedule], option: str) -> list[float]:
    """Values out of the option's interval; a missing row of the tables is a KeyError."""
    values = WHOLE.get((cls.__name__, option))
    return REAL[option] if values is None else values


@pytest.mark.parametrize(("cls", "option"), OPTIONS)
def test_a_number_out_of_range_is_named(cls, option):
    for value in outside(cls, option):
        with pytest.raises(ValueError, match=rf"^{option} must be .*got {value!r}"):
            make(cls, **{option: value})
    if (cls.__name__, option) not in WHOLE:
        for value in (math.nan, math.inf, -math.inf):
            with pytest.raises(ValueError, match=rf"^{option} must be .*got {value!r}"):
                make(cls, **{option: value})


@pytest.mark.parametrize(("cls", "option"), OPTIONS)
def test_what_is_no_number_is_named(cls, option):
    whole = (cls.__name__, option) in WHOLE
    optional = (cls.__name__, option) in {("Cosine", "n_steps"), ("OneCycle", "n_steps")}
    not_numbers = ["1", True, [1], *([] if optional else [None])]
    for value in (*not_numbers, *([2.5, 10.0, math.nan] if whole else [])):
        with pytest.raises(TypeError, match=rf"^{option} must be a "):
            make(cls, **{option: value})


@pytest.mark.parametrize("cls", [Cosine, OneCycle])
def test_without_a_length_a_schedule_spans_the_call_of_fit(cls):
    open_ended = cls(0.3)
    with pytest.raises(ValueError, match="n_steps=None"):
        open_ended(0)
    assert open_ended.over(50) == cls(0.3, n_steps=50)
    assert cls(0.3, n_steps=7).over(50) == cls(0.3, n_steps=7)
    after = WarmUp(0.3, n_steps=10, then=open_ended)
    assert after.over(50) == WarmUp(0.3, n_steps=10, then=cls(0.3, n_steps=40))
    assert Exponential(0.3, gamma=0.9).over(50) == Exponential(0.3, gamma=0.9)


@pytest.mark.parametrize("then", [0.1, "cosine", True])
def test_what_follows_a_warm_up_is_callable(then):
    with pytest.raises(TypeError, match=r"^then must be a callable"):
        WarmUp(0.1, then=then)


@pytest.mark.parametrize("cls", SCHEDULES.values(), ids=SCHEDULES)
def test_the_learning_rate_has_no_default(cls):
    with pytest.raises(TypeError, match="learning_rate"):
        cls()
