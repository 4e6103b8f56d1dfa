"""Every activation and its derivative: accurate to a few units in the last place, anywhere.

The formulas on this side are SciPy's or other forms of the library's; they run in float64. Nothing
here runs inside ``backend.context()``, which on NumPy would hide an overflow or a NaN: with
warnings as errors each of them fails a test.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from optional import optional

from xpmlp import Dense, Network, rules
from xpmlp.activations import (
    ACTIVATIONS,
    ELU,
    GELU,
    SELU,
    Activation,
    Exp,
    GELUTanh,
    Identity,
    LeakyReLU,
    Mish,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from xpmlp.backends import Backend

special = optional("scipy.special")

# --- The functions ------------------------------------------------------------------------------

SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


def sigmoid(z: np.ndarray) -> np.ndarray:
    # SciPy's is 0 where exp(-z) overflows, though its value is still a subnormal number.
    return np.exp(np.minimum(z, 0)) / (1 + np.exp(-np.abs(z)))


def elu(alpha: float, scale: float = 1.0) -> Callable[[np.ndarray], np.ndarray]:
    return lambda z: scale * np.where(z > 0, z, alpha * special.expm1(np.minimum(z, 0)))


def gelu_tanh(z: np.ndarray) -> np.ndarray:
    # (1 + tanh u) / 2 = sigmoid(2 u)
    return z * special.expit(2 * math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))


def mish(z: np.ndarray) -> np.ndarray:
    # tanh(log(1 + e)) = e (e + 2) / (e (e + 2) + 2)
    e = np.exp(np.minimum(z, 30.0))
    return z * (e * (e + 2) / (e * (e + 2) + 2))


@dataclass(frozen=True)
class Case:
    """An activation and what is known of it.

    `slopes` are the derivatives at -10**4, 0 and 10**4; `torch` names PyTorch's function.
    `tail` is set where a negative tail is the small difference of large numbers, so that it can
    be right to a few units in the last place of z only.
    """

    activation: Activation
    value: Callable[[np.ndarray], np.ndarray]
    slopes: tuple[float, float, float]
    torch: tuple[str, dict[str, Any]] | None = None
    tail: bool = False


CASES = {
    "identity": Case(Identity(), lambda z: z, (1, 1, 1)),
    "sigmoid": Case(Sigmoid(), sigmoid, (0, 1 / 4, 0), ("sigmoid", {})),
    "tanh": Case(Tanh(), np.tanh, (0, 1, 0), ("tanh", {})),
    "relu": Case(ReLU(), lambda z: np.maximum(z, 0), (0, 0, 1), ("relu", {})),
    "leaky_relu": Case(
        LeakyReLU(),
        lambda z: np.where(z > 0, z, 0.01 * z),
        (0.01, 0.01, 1),
        ("leaky_relu", {"negative_slope": 0.01}),
    ),
    "leaky_relu slope": Case(
        LeakyReLU(slope=0.3),
        lambda z: np.where(z > 0, z, 0.3 * z),
        (0.3, 0.3, 1),
        ("leaky_relu", {"negative_slope": 0.3}),
    ),
    "elu": Case(ELU(), elu(1.0), (0, 1, 1), ("elu", {})),
    "elu alpha": Case(ELU(alpha=0.4), elu(0.4), (0, 0.4, 1), ("elu", {"alpha": 0.4})),
    "selu": Case(
        SELU(),
        elu(SELU_ALPHA, SELU_SCALE),
        (0, SELU_SCALE * SELU_ALPHA, SELU_SCALE),
        ("selu", {}),
    ),
    "gelu": Case(GELU(), lambda z: z * special.ndtr(z), (0, 1 / 2, 1), ("gelu", {}), tail=True),
    "gelu_tanh": Case(
        GELUTanh(), gelu_tanh, (0, 1 / 2, 1), ("gelu", {"approximate": "tanh"}), tail=True
    ),
    "silu": Case(SiLU(), lambda z: z * sigmoid(z), (0, 1 / 2, 1), ("silu", {})),
    "softplus": Case(Softplus(), lambda z: -special.log_expit(-z), (0, 1 / 2, 1), ("softplus", {})),
    "mish": Case(Mish(), mish, (0, 3 / 5, 1), ("mish", {})),
    "exp": Case(Exp(), np.exp, (0, 1, math.inf)),
}
BOUNDED = {name: case for name, case in CASES.items() if name != "exp"}
READING_A = {name: case for name, case in CASES.items() if case.activation.reads == "a"}
IN_TORCH = {name: case for name, case in CASES.items() if case.torch}

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])

MAGNITUDES = [0.1, 0.3, 0.5, 1.0, 1.7, 2.5, 4.0, 5.9, 6.1, 8.0, 12.0, 20.0, 40.0, 50.0, 88.0]
MAGNITUDES += [104.0, 300.0, 700.0, 740.0, 1e3, 1e4]


def grid(dtype: str, largest: float = math.inf) -> np.ndarray:
    """Both signs of zero, subnormal, tiny, ordinary and large numbers."""
    info = np.finfo(dtype)
    tiny = [0.0, info.smallest_subnormal, 5 * info.smallest_subnormal, info.smallest_normal]
    tiny += [info.eps**2, info.eps / 2, info.eps, 1e-5, 1e-3]
    positive = np.array([float(x) for x in tiny] + MAGNITUDES, dtype)
    z = np.concatenate([-positive[::-1], positive])
    return z[z <= largest]


def forward(backend: Backend, activation: Activation, z: np.ndarray) -> np.ndarray:
    """The activation of a matrix with the rows of `z`, or one row."""
    on_device = backend.from_host(np.atleast_2d(z))
    a = backend.empty(on_device.shape, str(z.dtype))
    activation.forward(backend, on_device, a, backend.empty((a.shape[0], 1), str(z.dtype)))
    assert backend.to_host(on_device).tobytes() == z.tobytes()
    return backend.to_host(a).reshape(z.shape)


def backward(
    backend: Backend, activation: Activation, z: np.ndarray, d: np.ndarray | float = 1.0
) -> np.ndarray:
    """``d g'(z)``, where the rule is shown only what it says it reads."""
    dtype = str(z.dtype)
    unread = np.full(z.shape, np.nan, dtype)
    a = forward(backend, activation, z)
    arrays = [unread, a] if activation.reads == "a" else [z, unread]
    if isinstance(activation, Identity):
        arrays = [unread, unread]
    arrays.append(np.full(z.shape, d, dtype))
    on_device = [backend.from_host(np.atleast_2d(x).copy()) for x in arrays]
    column = backend.empty((on_device[0].shape[0], 1), dtype)
    activation.backward(backend, *on_device, column)
    return backend.to_host(on_device[2]).reshape(z.shape)


def assert_accurate(got: np.ndarray, exact: np.ndarray, allowed: np.ndarray) -> None:
    assert np.isfinite(got).all()
    error = np.abs(got.astype("float64") - exact)
    worst = int(np.argmax(error - allowed))
    assert (error <= allowed).all(), (got[worst], exact[worst], error[worst] / allowed[worst])


# --- Values -------------------------------------------------------------------------------------


def test_the_table_has_every_activation():
    tested = {type(case.activation) for case in CASES.values()} | {Softmax}
    assert tested == set(ACTIVATIONS.values())


@each_dtype
@each_case
def test_value_is_accurate(case, dtype, backend):
    z = grid(dtype, 88.0 if isinstance(case.activation, Exp) else math.inf)
    exact = case.value(z.astype("float64"))
    info = np.finfo(dtype)
    size = np.abs(z).astype("float64")
    # Eight units in the last place; below the normal numbers there are fewer digits.
    allowed = 8 * float(info.eps) * np.abs(exact)
    allowed += 8 * float(info.smallest_subnormal) * np.maximum(size, 1)
    if case.tail:
        # z Phi(z) is below 1e-22 from -10 on: no multiple of |z| belongs there.
        allowed += np.where(z > -10, 8 * float(info.eps) * size, float(info.eps))
    assert_accurate(forward(backend, case.activation, z), exact, allowed)


@each_dtype
@pytest.mark.parametrize(
    ("activation", "z", "exact"),
    [
        (Sigmoid(), -50.0, 1.928749847963918e-22),
        (Sigmoid(), 0.0, 0.5),
        (Sigmoid(), math.log(3.0), 0.75),
        (Softplus(), -40.0, 4.248354255291589e-18),
        (Softplus(), 0.0, math.log(2.0)),
        (SiLU(), -50.0, -50 * 1.928749847963918e-22),
        (Mish(), -40.0, -40 * 4.248354255291589e-18),
        (Mish(), 0.0, 0.0),
        (ELU(), -1e-6, -9.999995000001667e-07),
        (SELU(), 1.0, SELU_SCALE),
        (GELU(), 1.0, 0.8413447460685429),
        (GELU(), -3.0, -0.004049694094890283),
        (GELUTanh(), 1.0, 0.8411919906082768),
        (LeakyReLU(), -3.0, -0.03),
    ],
)  # fmt: skip
def test_value_by_hand(activation, z, exact, dtype, backend):
    got = float(forward(backend, activation, np.array([z], dtype))[0])
    # An input such as log 3 is itself rounded; the negative tail of GELU cancels.
    allowed = 8 * float(np.finfo(dtype).eps) * max(1, abs(z))
    assert got == pytest.approx(exact, rel=allowed, abs=allowed * isinstance(activation, GELU))


@each_dtype
@pytest.mark.parametrize("case", BOUNDED.values(), ids=BOUNDED)
def test_value_keeps_to_the_range_of_the_function(case, dtype, backend):
    a, z = forward(backend, case.activation, grid(dtype)), grid(dtype)
    name = case.activation.name
    if name in ("sigmoid", "softplus", "relu"):
        assert (a >= 0).all()
    if name in ("sigmoid", "tanh"):
        assert (np.abs(a) <= 1).all()
    if name in ("gelu", "gelu_tanh", "silu", "mish"):
        # Never above the line, and of the sign of z.
        assert (a <= np.maximum(z, 0)).all()
        assert (a[z > 0] >= 0).all()
    if name not in ("gelu", "gelu_tanh", "silu", "mish"):
        assert (np.diff(a) >= 0).all()


@each_dtype
def test_exp_overflows_to_infinity(dtype, backend):
    z = np.array([-1e4, 1e4], dtype)
    with np.errstate(over="ignore"):
        assert forward(backend, Exp(), z).tolist() == [0.0, math.inf]


@pytest.mark.parametrize("case", READING_A.values(), ids=READING_A)
def test_may_overwrite_its_input(case, backend):
    z = grid("float64", 88.0)
    apart = forward(backend, case.activation, z)
    together = backend.from_host(z[None, :].copy())
    case.activation.forward(backend, together, together, backend.empty((1, 1), "float64"))
    assert backend.to_host(together)[0].tobytes() == apart.tobytes()


# --- Derivatives --------------------------------------------------------------------------------

# Eighth-order central differences: the error is of the order of 1e-13.
WEIGHTS = {1: 4 / 5, 2: -1 / 5, 3: 4 / 105, 4: -1 / 280}
STEP = 0.01
# Half the grid is no further than 0.0625 from a kink at 0, but no stencil crosses it.
SMOOTH = np.concatenate([[-12.3, -8.1], np.arange(-5.9375, 6, 0.125), [8.1, 12.3]])


def central_difference(function: Callable[[np.ndarray], np.ndarray], z: np.ndarray) -> np.ndarray:
    return sum(
        weight * (function(z + k * STEP) - function(z - k * STEP)) / STEP
        for k, weight in WEIGHTS.items()
    )


@each_case
def test_derivative_equals_differences(case, backend):
    expected = central_difference(case.value, SMOOTH)
    got = backward(backend, case.activation, SMOOTH)
    np.testing.assert_allclose(got, expected, rtol=2e-12, atol=2e-12)


@pytest.mark.parametrize("case", IN_TORCH.values(), ids=IN_TORCH)
def test_value_and_derivative_equal_torch(case, backend):
    torch = pytest.importorskip("torch")
    name, options = case.torch
    z = torch.tensor(SMOOTH, requires_grad=True)
    a = getattr(torch.nn.functional, name)(z, **options)
    (slope,) = torch.autograd.grad(a.sum(), z)
    activation = case.activation
    np.testing.assert_allclose(
        forward(backend, activation, SMOOTH), a.detach(), rtol=1e-13, atol=1e-14
    )
    np.testing.assert_allclose(backward(backend, activation, SMOOTH), slope, rtol=1e-13, atol=1e-14)


@each_dtype
@pytest.mark.parametrize("case", BOUNDED.values(), ids=BOUNDED)
def test_derivative_far_out_and_at_zero(case, dtype, backend):
    z = np.array([-1e4, -0.0, 0.0, 1e4], dtype)
    low, middle, high = case.slopes
    got = backward(backend, case.activation, z)
    # The erf of the reference is right to a few units in the last place only.
    np.testing.assert_allclose(
        got, [low, middle, middle, high], rtol=4 * np.finfo(dtype).eps, atol=4 * np.finfo(dtype).eps
    )


@each_case
def test_derivative_in_float32(case, backend):
    z = grid("float32", 88.0 if isinstance(case.activation, Exp) else math.inf)
    exact = backward(backend, case.activation, z.astype("float64"))
    got = backward(backend, case.activation, z)
    assert got.dtype == np.float32
    # Between 1 and 10 the rules cancel up to |z| g' of their digits.
    allowed = 64 * float(np.finfo("float32").eps) * np.maximum(np.abs(exact), 1)
    assert_accurate(got, exact, allowed)


@each_case
def test_derivative_multiplies_the_error_term(case, backend, rng):
    z, d = rng.normal(size=(5, 7)), rng.normal(size=(5, 7))
    got = backward(backend, case.activation, z, d)
    np.testing.assert_allclose(got, d * backward(backend, case.activation, z), rtol=1e-14)


def test_sigmoid_reads_its_activation():
    # One of the documents applies a (1 - a) to the pre-activation.
    z = np.array([[0.3]])
    a = 1 / (1 + math.exp(-0.3))
    d = np.ones((1, 1))
    assert Sigmoid.reads == "a"
    assert rules.sigmoid_backward(np, a, 1.0) == pytest.approx(a * (1 - a), rel=1e-15)
    assert rules.sigmoid_backward(np, a, d).item() != pytest.approx(float(z[0, 0] * (1 - z[0, 0])))


# --- Softmax ------------------------------------------------------------------------------------


def logits(dtype: str) -> np.ndarray:
    """Rows of six; the last ones would overflow without subtracting their maximum."""
    rng = np.random.default_rng(4)
    rows = [rng.normal(size=6), 10 * rng.normal(size=6), np.zeros(6), -0.0 * np.ones(6)]
    rows += [np.array([1e4, -1e4, 0.0, 1e4, 5.0, -5.0]), np.full(6, -1e4), np.full(6, 1e4)]
    rows += [
        np.array([0.0, -50.0, -80.0, -1.0, -1e-8, 1e-300]),
        np.array([1e30, 0, 0, 0, 0, -1e30]),
    ]
    return np.array(rows).astype(dtype)


@each_dtype
def test_softmax_value(dtype, backend):
    z = logits(dtype)
    a = forward(backend, Softmax(), z)
    eps = float(np.finfo(dtype).eps)
    exact = special.softmax(z.astype("float64"), axis=1)
    allowed = 16 * eps * exact + 8 * float(np.finfo(dtype).smallest_subnormal)
    assert_accurate(a.ravel(), exact.ravel(), allowed.ravel())
    np.testing.assert_allclose(a.sum(axis=1), 1.0, rtol=6 * eps)
    assert (a >= 0).all()


@each_dtype
def test_softmax_does_not_change_when_a_row_is_shifted(dtype, backend):
    # Whole numbers, so that the shift itself rounds nothing.
    z = np.random.default_rng(5).integers(-40, 40, size=(8, 5)).astype(dtype)
    shift = np.array([[1], [-7], [100], [-500], [2**12], [-(2**12)], [0], [33]]).astype(dtype)
    plain, shifted = forward(backend, Softmax(), z), forward(backend, Softmax(), z + shift)
    assert plain.tobytes() == shifted.tobytes()


@each_dtype
def test_softmax_of_one_column_is_one(dtype, backend):
    assert (forward(backend, Softmax(), np.array([[3.0], [-1e4], [1e4]], dtype)) == 1).all()


@each_dtype
def test_softmax_derivative_is_the_jacobian(dtype, backend):
    z = logits(dtype)
    d = np.random.default_rng(6).normal(size=z.shape).astype(dtype)
    a = special.softmax(z.astype("float64"), axis=1)
    expected = [(np.diag(row) - np.outer(row, row)) @ e for row, e in zip(a, d, strict=True)]
    got = backward(backend, Softmax(), z, d)
    np.testing.assert_allclose(got, expected, rtol=0, atol=16 * np.finfo(dtype).eps)


def test_softmax_derivative_equals_differences(backend):
    z = np.random.default_rng(7).normal(size=(4, 5))
    d = np.random.default_rng(8).normal(size=(4, 5))
    expected = np.empty_like(z)
    for k in range(5):

        def along(step, k=k):
            return (d * special.softmax(z + step * np.eye(5)[k], axis=1)).sum(axis=1)

        expected[:, k] = central_difference(along, 0.0)
    np.testing.assert_allclose(backward(backend, Softmax(), z, d), expected, atol=1e-12)


def test_softmax_of_two_columns_is_a_sigmoid(backend):
    z = grid("float64")
    pair = forward(backend, Softmax(), np.stack([z, np.zeros_like(z)], axis=1))
    np.testing.assert_allclose(pair[:, 0], sigmoid(z), rtol=1e-15, atol=1e-322)


# --- Names and arguments ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alias", "cls"), [("logistic", Sigmoid), ("swish", SiLU), ("linear", Identity)]
)
def test_aliases(alias, cls):
    assert ACTIVATIONS[alias] is cls
    for name in (alias, alias.upper(), cls.name):
        assert Dense(3, name).activation == cls()


def test_names_and_objects():
    for name, cls in ACTIVATIONS.items():
        assert type(Dense(2, name).activation) is cls
    assert Dense(2, ELU(alpha=0.5)).activation.alpha == 0.5


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"^activation='rleu' is not known\. Did you mean 'relu'"):
        Dense(2, "rleu")
    for value in (None, 3, Sigmoid, np.tanh):
        with pytest.raises(TypeError, match=r"^activation must be a name or an instance of Act"):
            Dense(2, value)


@pytest.mark.parametrize(
    ("cls", "option", "low"), [(LeakyReLU, "slope", None), (ELU, "alpha", -0.1)]
)
def test_bad_numbers_are_named(cls, option, low):
    for value in (math.nan, math.inf, *([] if low is None else [low])):
        with pytest.raises(ValueError, match=rf"^{option} must be a number.*got {value!r}"):
            cls(value)
    for value in ("0.1", True, None):
        with pytest.raises(TypeError, match=rf"^{option} must be a number"):
            cls(value)


@each_case
def test_is_what_a_layer_computes(case, backend, rng):
    x = rng.normal(size=(6, 3))
    network = Network(3, [Dense(4, case.activation)], backend=backend, seed=1)
    with backend.context():
        (values,) = network.trace(x)
    z = backend.to_host(values.z)
    np.testing.assert_allclose(z, x @ backend.to_host(network.weights[0]), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(backend.to_host(values.a), case.value(z), rtol=1e-14, atol=1e-15)
    assert network.predict(x).tobytes() == backend.to_host(values.a).tobytes()
