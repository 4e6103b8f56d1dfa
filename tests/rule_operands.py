"""Operands for every rule of xpmlp.rules: as the library calls it, all arrays, edge values."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from primitive_cases import LAYOUTS, NUMPY, assert_same, edge_values, normal

from xpmlp import rules

RULES = {
    name: rule
    for name, rule in inspect.getmembers(rules, inspect.isfunction)
    if rule.__module__ == rules.__name__ and not name.startswith("_")
}
LEFT_OPEN = {"erf", "exp", "expm1", "log", "log1p", "tanh"}
# Operands that may have either sign; all others are drawn from (0.05, 0.95), which suits rates,
# probabilities, denominators, square roots and logarithms alike.
SIGNED = {"z", "d", "g", "h", "p", "x"}
# Numbers in the library's calls; the others are arrays.
NUMBERS = {
    "alive", "alpha", "b1", "b2", "delta", "eps", "gain", "gamma", "half_minus_q", "keep",
    "l1", "limit", "lr", "lr_g", "lr_m", "mu", "o1", "o2", "off", "offset", "on",
    "one_minus_rho", "rho", "root", "scale", "share", "slope", "tiny",
}  # fmt: skip
ARRAYS = {
    "a", "ad", "c", "column", "d", "e", "g", "h", "label", "m", "p", "s", "squares", "t",
    "total", "u", "v", "w", "x", "y", "z",
}  # fmt: skip
# Those of shape (n, 1) in the library's calls of a rule, or of shape (d,).
COLUMNS = {
    "exp_shifted": {"m"},
    "divide": {"s"},
    "softmax_backward": {"s"},
    "categorical_log_loss_from_softmax": {"m", "s", "t"},
    "categorical_focal_from_softmax": {"m", "s"},
    "clipped_categorical_log_loss": {"s"},
    "softmax_backward_from_logits": {"m", "s", "t"},
    "one_hot": {"label"},
}
ROWS = {"add": {"y"}, "one_hot": {"column"}}
# Of one rule only, numbers that an other rule has as an array.
SCALARS = {"clip_norm_factor": {"limit"}, "weight_share": {"total"}}


def parameters(rule: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(rule).parameters)[1:]


def n_results(rule: Callable[..., Any]) -> int:
    return len(_tuple(rule(NUMPY.functions, *[np.full(1, 0.5)] * len(parameters(rule)))))


def is_arithmetic(rule: Callable[..., Any]) -> bool:
    """Whether IEEE 754 fixes every bit of the result."""
    return not set(rule.__code__.co_names) & LEFT_OPEN


class Perturbed:
    """NumPy's functions for rules, those that IEEE 754 leaves open off by some units in the last
    place, up or down at random."""

    def __init__(self, ulps: float, seed: int) -> None:
        self.ulps = ulps
        self.rng = np.random.default_rng(seed)
        self.used = False

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(NUMPY.functions, name)
        if name not in LEFT_OPEN:
            return function
        self.used = True

        def perturbed(x: Any) -> Any:
            value = np.asarray(function(x))
            off = self.ulps * np.finfo(value.dtype).eps * self.rng.choice([-1.0, 1.0], value.shape)
            return value * (1.0 + off).astype(value.dtype)

        return perturbed


def assert_conforms(
    rule: Callable[..., Any], operands: Sequence[Any], got: Sequence[Any], ulps: float = 4.0
) -> None:
    """`got` is NumPy's result of `rule`, to the bit if IEEE 754 fixes it.

    Otherwise the two differ by no more than results do when each function is off by `ulps`:
    some rules hardly feel that, others subtract nearly equal numbers.
    """
    with NUMPY.context():
        expected = _tuple(rule(NUMPY.functions, *operands))
        perturbed = [Perturbed(ulps, seed) for seed in range(32)]
        others = [_tuple(rule(functions, *operands)) for functions in perturbed]
        for place, (one, value) in enumerate(zip(got, expected, strict=True)):
            exact = np.broadcast_to(np.asarray(value, one.dtype), one.shape)
            if not perturbed[0].used:
                assert_same(one, exact)
                continue
            spread = np.max([np.abs(other[place] - value) for other in others], axis=0)
            finite = np.isfinite(exact)
            np.testing.assert_array_equal(one[~finite], exact[~finite])
            info = np.finfo(one.dtype)
            # A change may also turn a rounding that follows, whatever its size.
            allowed = 2 * spread + ulps * info.eps * np.abs(exact) + ulps * info.smallest_subnormal
            error = np.abs(one - exact)
            assert (error <= allowed)[finite].all(), (error / allowed)[finite].max()


def _tuple(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def drawn(name: str, shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    if name in SIGNED:
        return normal(shape, dtype, seed)
    return np.random.default_rng(seed).uniform(0.05, 0.95, size=shape).astype(dtype)


def as_called(rule: Callable[..., Any], shape: tuple[int, int], dtype: str) -> list[Any]:
    """Operands of the shapes and kinds that the library's own calls have."""
    name, operands = rule.__name__, []
    for seed, parameter in enumerate(parameters(rule)):
        if parameter in NUMBERS:
            operands.append(float(drawn(parameter, (), "float64", seed)))
        elif parameter in SCALARS.get(name, ()):
            operands.append(drawn(parameter, (), dtype, seed))
        elif parameter in COLUMNS.get(name, ()):
            operands.append(drawn(parameter, (shape[0], 1), dtype, seed))
        elif parameter in ROWS.get(name, ()):
            operands.append(drawn(parameter, shape[1:], dtype, seed))
        else:
            operands.append(drawn(parameter, shape, dtype, seed))
    return operands


def all_arrays(rule: Callable[..., Any], shape: tuple[int, int], dtype: str) -> list[Any]:
    """Every operand an array of the full shape, in different layouts."""
    views = list(LAYOUTS.values())
    return [
        views[seed % 3](drawn(parameter, shape, dtype, seed))
        for seed, parameter in enumerate(parameters(rule))
    ]


def edges(rule: Callable[..., Any], dtype: str) -> Iterator[list[Any]]:
    """Edge values in one operand after the other, the others as ever."""
    values = edge_values(dtype)
    if "erf" in rule.__code__.co_names:
        # 0 * infinity: the two erf end at numbers that differ in the last place.
        values = values[np.abs(values) < 1e4]
    shape = (3, values.size)
    for position, parameter in enumerate(parameters(rule)):
        operands = all_arrays(rule, shape, dtype)
        if parameter in ARRAYS:
            operands[position] = np.broadcast_to(values, shape).copy()
            yield operands
