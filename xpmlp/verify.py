"""Do the devices of this machine give the same run? Whole runs, compared tensor by tensor.

Every participant trains the same networks from the same seed. What each step computes is kept in
the order of computation, so that the first tensor that differs says where a fault is. Rounding
adds up from step to step, and so does what is allowed.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import combinations
from typing import Any

from xpmlp import __version__
from xpmlp.backends import host
from xpmlp.comparing import other_bits
from xpmlp.data import Batches, shuffled
from xpmlp.errors import check_number
from xpmlp.history import new_axes
from xpmlp.layers import DenseStage
from xpmlp.step import Dataset, TrainingStep
from xpmlp.testing import (
    Differences,
    check_backend,
    compare_gradient,
    counted_transfers,
    finite_differences,
    parameter_names,
    worst_place,
)
from xpmlp.typing import Backend
from xpmlp.verify_cases import Case, build, cases, sample

STEPS = 200
# Largest relative difference of a tensor after one step, and what a step may add to it.
ONE_STEP = {"float64": 3e-13, "float32": 1e-5}
GROWTH = {"float64": 1e-15, "float32": 2e-6}
# From so many steps on networks may drift apart faster than a line, on devices without fault.
MOST_STEPS = 500
# Faults that are printed; a wrong product shows in every network.
_SHOWN = 12


# --- One run --------------------------------------------------------------------------------------


@dataclass
class Trace:
    """What a run computed: the loss of each step, and every tensor of it by name."""

    losses: list[float]
    steps: list[dict[str, Any]]
    transfers: list[str]


def trace(case: Case, backend: Backend, dtype: str, n_steps: int) -> Trace:
    """Train a case for some steps and keep everything, on the host."""
    X, y, weight = sample(case)
    X, weight = X.astype(dtype), None if weight is None else weight.astype(dtype)
    y = y if case.labels else y.astype(dtype)
    network = build(case, backend, dtype)
    found = Trace([], [], [])
    with backend.context(), _immediate(backend, backend.immediate and not case.deferred):
        data = Dataset(network, X, y, weight, case.loss)
        options = {"alpha": 0.0} | dict(case.options)
        step = TrainingStep(network, case.optimizer, case.batch_size, data, **options)
        n = case.n_samples
        batches = Batches(backend, n, case.batch_size, shuffled(network.seed, n))
        for number in range(min(n_steps, case.most_steps)):
            epoch, batch = divmod(number, len(batches))
            rows = list(batches.epoch(epoch))[batch]
            with counted_transfers(backend) as calls:
                value = step.forward(rows, epoch, batch)
            tensors = _on_host(backend, _forward_tensors(step))
            with counted_transfers(backend) as more_calls:
                step.backward()
            tensors |= _on_host(backend, _backward_tensors(step))
            if number >= len(batches):  # buffers and kernels are made in the first epoch
                found.transfers += calls + more_calls
            found.losses.append(backend.read(value))
            found.steps.append({**tensors, "loss": host().xp.asarray(found.losses[-1])})
    return found


@contextmanager
def _immediate(backend: Backend, value: bool) -> Iterator[None]:
    """Have an adapter say of itself that reading a result waits for nothing, or that it waits."""
    before = backend.immediate
    backend.immediate = value
    try:
        yield
    finally:
        backend.immediate = before


def _on_host(backend: Backend, tensors: Iterator[tuple[str, Any]]) -> dict[str, Any]:
    return {name: backend.to_host(x).copy() for name, x in tensors}


def _forward_tensors(step: TrainingStep) -> Iterator[tuple[str, Any]]:
    """What the forward pass computed, in order."""
    objective = step.objective
    yield "batch: X", objective.x
    for index, (layer, stage) in enumerate(
        zip(step.network.layers, objective.program.stages, strict=True)
    ):
        place = f"layers[{index}] {layer}"
        if isinstance(stage, DenseStage):
            if stage.z is not stage.a:
                yield f"{place}: pre-activation", stage.z
        else:
            yield f"{place}: uniforms", stage.u
        yield f"{place}: output", stage.a
    yield "targets", objective.target
    yield "loss of each element", objective.elements
    yield "gradient by the output", objective.d


def _backward_tensors(step: TrainingStep) -> Iterator[tuple[str, Any]]:
    """What the backward pass and the update computed, in order."""
    layers, stages = step.network.layers, step.objective.program.stages
    for index in reversed(range(len(stages))):
        stage, place = stages[index], f"layers[{index}] {layers[index]}"
        if isinstance(stage, DenseStage):
            yield f"{place}: error term", stage.d
            yield f"{place}: gradient of the weights", stage.grad_w
            if stage.grad_b is not None:
                yield f"{place}: gradient of the bias", stage.grad_b
        else:
            yield f"{place}: gradient by its output", stage.d
    for name, slot in step.state.slots.items():
        yield f"optimizer: {name}", slot
    yield "parameters", step.network.parameters


# --- Comparing runs -------------------------------------------------------------------------------


def _allowed(dtype: str, step: int) -> float:
    """The largest relative difference after `step` more steps than one."""
    return ONE_STEP[dtype] + step * GROWTH[dtype]


@dataclass(frozen=True)
class Disagreement:
    """The first tensor of two runs that differs by more than is allowed."""

    case: str
    step: int
    tensor: str
    place: tuple[int, ...]
    values: tuple[float, float]
    difference: float
    allowed: float

    def __str__(self) -> str:
        return (
            f"{self.case}: step {self.step + 1}, {self.tensor}{list(self.place)}: "
            f"{self.values[0]!r} and {self.values[1]!r}, a relative difference of "
            f"{self.difference:.1e}, allowed {self.allowed:.1e}"
        )


@dataclass
class Comparison:
    """How far two participants are apart, over all cases.

    Attributes
    ----------
    one_step : float or None
        The largest relative difference of a tensor in the first step; None if nothing could be
        compared.
    drift : list of float
        The largest relative difference of the parameters after each step.
    first : Disagreement or None
    """

    pair: tuple[str, str]
    dtype: str
    one_step: float | None = None
    drift: list[float] = field(default_factory=list)
    first: Disagreement | None = None

    def add(self, case: Case, one: Trace, other: Trace) -> None:
        """Compare the two runs of one more case."""
        ranges = _magnitudes(one)
        for number, (a, b) in enumerate(zip(one.steps, other.steps, strict=True)):
            allowed = _allowed(self.dtype, number)
            for name in a:
                if name not in b:
                    raise AssertionError(f"{case.name}: {name} is missing in one of two runs")
                place, difference = worst_place(b[name], a[name], 1e-3 * ranges[name])
                if number == 0:
                    self.one_step = max(self.one_step or 0.0, difference)
                if not difference <= allowed and self.first is None:
                    values = float(a[name][place]), float(b[name][place])
                    located = _locate(case, name, place)
                    self.first = Disagreement(
                        case.name, number, located, place, values, difference, allowed
                    )
                if name == "parameters":
                    if number == len(self.drift):
                        self.drift.append(0.0)
                    self.drift[number] = max(self.drift[number], difference)


def _locate(case: Case, name: str, place: tuple[int, ...]) -> str:
    """The name of a tensor, with that of the parameter where it is a vector of all of them."""
    if name == "parameters" or name.startswith("optimizer"):
        network = build(case, host(), "float64")
        return f"{name}, {parameter_names(network)[place[0]]}, "
    return name


def _magnitudes(trace: Trace) -> dict[str, float]:
    """The largest magnitude of each tensor over a run: what differences are measured by."""
    found: dict[str, float] = {}
    for tensors in trace.steps:
        for name, x in tensors.items():
            largest = host().xp.max(abs(x), where=host().xp.isfinite(x), initial=0.0)
            found[name] = max(found.get(name, 0.0), float(largest))
    return found


# --- The report -----------------------------------------------------------------------------------


@dataclass
class Report:
    """What :func:`verify` found.

    Attributes
    ----------
    participants : dict of str to str
        Versions of what was compared.
    steps : int
    gradients : dict of str to float
        Largest relative difference from finite differences, for each participant and dtype.
    losses : dict of str to dict of str to list of float
        The loss of each step, for each participant and dtype, and each network.
    comparisons : list of Comparison
    faults : list of str
        In words; empty if everything agrees.
    """

    participants: dict[str, str]
    steps: int
    gradients: dict[str, float] = field(default_factory=dict)
    losses: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data: with the tolerances, and infinity as text, for JSON.

        What is allowed after n steps is ``one_step + (n - 1) growth``.
        """
        plain: dict[str, Any] = _finite(
            {
                "agree": bool(self.comparisons) and not self.faults,
                "version": __version__,
                "python": platform.python_version(),
                "system": platform.platform(),
                "one_step": ONE_STEP,
                "growth": GROWTH,
                **asdict(self),
            }
        )
        return plain

    def __str__(self) -> str:
        wide = max(len(name) for name in self.participants)
        lines = [f"{name:<{wide}}  {version}" for name, version in self.participants.items()]
        lines += ["", f"{len(cases())} networks, gradients against finite differences:"]
        for name, value in self.gradients.items():
            lines.append(f"  {name:<{wide + 9}}  {value:.1e}")
        lines += ["", *self._table(2 * wide + 14)] if self.comparisons else []
        shown, others = self.faults[:_SHOWN], self.faults[_SHOWN:]
        lines += ["", *(f"FAULT  {fault}" for fault in shown)]
        if others:
            lines.append(f"... and {len(others)} more, which --json lists")
        if not self.faults:
            lines.append(
                "All agree." if self.comparisons else
                "Nothing was compared: there is one participant. Install another, such as "
                "'xpmlp[torch]' or array-api-strict, or use --against reference."
            )  # fmt: skip
            lines.append(
                "Primitives and gradients are right, each run is the same twice, to the bit, and "
                "no step called the adapter's to_host, from_host or read."
            )
        return "\n".join(lines)

    def _table(self, wide: int) -> Iterator[str]:
        yield f"{'largest relative difference of':<{wide}}{'all tensors':>14}{'parameters':>14}"
        yield f"{'':<{wide}}{'in step 1':>14}{f'in {self.steps} steps':>14}"
        for found in self.comparisons:
            name = f"{' and '.join(found.pair)}, {found.dtype}"
            values = found.one_step, max(found.drift, default=None)
            cells = (f"{'-' if value is None else f'{value:.1e}':>14}" for value in values)
            yield f"  {name:<{wide - 2}}" + "".join(cells)
        for dtype in dict.fromkeys(found.dtype for found in self.comparisons):
            cells = (f"{x:>14.1e}" for x in (ONE_STEP[dtype], _allowed(dtype, self.steps - 1)))
            yield f"  {f'allowed in {dtype}':<{wide - 2}}" + "".join(cells)
        yield "Differences are relative to the largest magnitude of a tensor; of all networks."

    def plot(self, ax: Any = None) -> Any:
        """Draw the drift of the parameters over the steps.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Default: those of a new pyplot figure.

        Returns
        -------
        matplotlib Axes
        """
        ax = new_axes("Report.plot") if ax is None else ax
        styles = {"float64": "-", "float32": "--"}
        pairs = list(dict.fromkeys(found.pair for found in self.comparisons))
        for found in self.comparisons:
            if not any(found.drift):  # there is no line, so nothing to explain
                continue
            ax.plot(
                range(1, len(found.drift) + 1),
                [value or math.nan for value in found.drift],  # log axes have no zero
                styles[found.dtype],
                marker="o" if len(found.drift) == 1 else None,  # a line of one point is invisible
                color=f"C{pairs.index(found.pair)}",
                linewidth=1.0 + len(pairs) - pairs.index(found.pair),  # one under others is seen
                label=f"{' and '.join(found.pair)}, {found.dtype}",
            )
        for dtype, style in styles.items():
            allowed = [_allowed(dtype, step) for step in range(self.steps)]
            ax.plot(range(1, self.steps + 1), allowed, style, color="0.7", linewidth=1)
        ax.set_yscale("log")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set_xlabel("step")
        ax.set_ylabel("relative difference of the parameters (grey: allowed)")
        ax.grid(alpha=0.3)
        if any(any(found.drift) for found in self.comparisons):
            ax.legend(
                frameon=False, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0),
                ncols=2,
            )  # fmt: skip
        return ax


def _finite(value: Any) -> Any:
    """The same, with text for the numbers that JSON has not."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def verify(
    backends: Mapping[str, Backend],
    *,
    steps: int = STEPS,
    dtypes: Sequence[str] = ("float64", "float32"),
    progress: Callable[[str], None] = lambda text: None,
) -> Report:
    """Compare the runs of all pairs of adapters, and each run with itself and with calculus.

    Parameters
    ----------
    backends : mapping of str to Backend
        At least one; see :func:`xpmlp.testing.participants`.
    steps : int, default 200
        Of each run, at most 500.
    dtypes : sequence of str
        Those that an adapter does not train in are left out for it.
    progress : callable, optional
        Given a line of text now and then.

    Returns
    -------
    Report

    Raises
    ------
    TypeError, ValueError
        If the steps are no whole number in these bounds, or there is no adapter or known dtype.
    """
    check_number("steps", steps, minimum=1, maximum=MOST_STEPS, integer=True)
    if not backends or not dtypes or isinstance(dtypes, str) or set(dtypes) - ONE_STEP.keys():
        raise ValueError(
            "expected backends by name, and dtypes among "
            f"{', '.join(ONE_STEP)}, got {backends!r} and {dtypes!r}"
        )
    report = Report({name: backend.version() for name, backend in backends.items()}, steps)
    faults = report.faults
    for name, backend in backends.items():
        progress(f"primitives of {name}")
        with _collected(name, faults), backend.context():
            check_backend(backend)
    for dtype in dtypes:
        able = {
            name: backend
            for name, backend in backends.items()
            if dtype in [policy.parameter for policy in backend.policies]
        }
        found = {pair: Comparison(pair, dtype) for pair in combinations(able, 2)}
        for case in cases():
            progress(f"{dtype}, {case.name}")
            runs = {}
            for name, backend in able.items():
                label = f"{name}, {dtype}"
                with _collected(f"{label}, {case.name}", faults):
                    worst = gradient_difference(case, backend, dtype)
                    report.gradients[label] = max(report.gradients.get(label, 0.0), worst)
                with _collected(f"{label}, {case.name}", faults):
                    runs[name] = trace(case, backend, dtype, steps)
                    report.losses.setdefault(label, {})[case.name] = runs[name].losses
                    faults += [f"{label}, {text}" for text in own_faults(case, backend, runs[name])]
            for (one, other), comparison in found.items():
                if one in runs and other in runs:
                    with _collected(f"{one} and {other}, {dtype}", faults):
                        comparison.add(case, runs[one], runs[other])
        report.comparisons += found.values()
    first = [
        f"{' and '.join(comparison.pair)}, {comparison.dtype}, {comparison.first}"
        for comparison in report.comparisons
        if comparison.first is not None
    ]
    faults[:] = dict.fromkeys(first + faults)  # where a fault starts comes before its consequences
    return report


@contextmanager
def _collected(what: str, faults: list[str]) -> Iterator[None]:
    """Make a fault of whatever an adapter raises."""
    try:
        yield
    except AssertionError as error:
        faults.append(f"{what}: {error}")
    except Exception as error:
        faults.append(f"{what}: {type(error).__name__}: {error}")


def own_faults(case: Case, backend: Backend, found: Trace) -> list[str]:
    """Where a run is not its own repetition, or leaves the device inside a step.

    Parameters
    ----------
    case : Case
    backend : Backend
    found : Trace
        The run, which is repeated.

    Returns
    -------
    list of str
    """
    faults = []
    if found.transfers:
        calls = ", ".join(sorted(set(found.transfers)))
        faults.append(f"{case.name}: {len(found.transfers)} transfers inside steps ({calls})")
    again = trace(case, backend, _dtype_of(found), len(found.steps))
    for number, (a, b) in enumerate(zip(found.steps, again.steps, strict=True)):
        for name in a:
            place = other_bits(b[name], a[name])
            if place is not None:
                faults.append(
                    f"{case.name}: not the same twice, step {number + 1}, {name}{list(place)}: "
                    f"{float(a[name][place])!r} and {float(b[name][place])!r}"
                )
                return faults
    return faults


def _dtype_of(found: Trace) -> str:
    return str(found.steps[0]["parameters"].dtype)


def gradient_difference(case: Case, backend: Backend, dtype: str) -> float:
    """How far the gradient of a case is from finite differences.

    Raises
    ------
    AssertionError
        If it is wrong, with the layer, the place and both values.
    """
    data, options = _gradient_arguments(case)
    network = build(case, backend, dtype)
    gradient = network.loss_and_grad(*data, **options)[1].flat
    return compare_gradient(network, gradient, _expected_gradient(case.name))


@cache
def _expected_gradient(name: str) -> Differences:
    """By finite differences; of a wide network NumPy's, since there would be too many of them."""
    case = next(case for case in cases() if case.name == name)
    data, options = _gradient_arguments(case)
    network = build(case, host(), "float64")
    if case.wide:
        objective, gradient = network.loss_and_grad(*data, **options)
        return Differences(gradient.flat, 0.0 * gradient.flat, objective)
    return finite_differences(network, *data, **options)


def _gradient_arguments(case: Case) -> tuple[tuple[Any, ...], dict[str, Any]]:
    X, y, weight = sample(case, 12)
    penalties = {key: case.options[key] for key in ("alpha", "l1") if key in case.options}
    return (X, y, case.loss), {"sample_weight": weight, "step": 1, **penalties}
