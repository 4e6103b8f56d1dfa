"""Every loss: its value, its derivative, its targets and its weights.

The network under the loss is the identity: its logits are X and the gradient of X is that of the
logits. Every loss sums over outputs and averages over samples; scikit-learn averages over both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from optional import optional

from xpmlp import Dense, Network
from xpmlp.backends import Backend, host
from xpmlp.losses import (
    LOSSES,
    AbsoluteError,
    Focal,
    Huber,
    LogLoss,
    Loss,
    Poisson,
    Quantile,
    SquaredError,
)

special, metrics = optional("scipy.special"), optional("sklearn.metrics")

N_SAMPLES, N_OUTPUTS = 9, 3


def evaluate(
    loss: Loss | str,
    logits: Any,
    y: Any,
    activation: str = "identity",
    *,
    backend: Backend | None = None,
    dtype: str = "float64",
    **options: Any,
) -> tuple[float, np.ndarray]:
    """The loss of ``activation(logits)`` and its gradient with respect to the logits."""
    backend = backend or host()
    logits = np.asarray(logits, dtype)
    k = logits.shape[1]
    network = Network(k, [Dense(k, activation, bias=False)], backend=backend, dtype=dtype)
    backend.copy(backend.from_host(np.eye(k, dtype=dtype)), network.weights[0])
    value, gradient = network.loss_and_grad(logits, y, loss, **options)
    assert isinstance(value, float)
    slope = backend.to_host(gradient.inputs)
    assert slope.dtype == dtype
    return value, slope


# --- The table ----------------------------------------------------------------------------------

G = {
    "identity": lambda z: z,
    "sigmoid": special.expit,
    "softmax": lambda z: special.softmax(z, axis=1),
    "exp": np.exp,
    "softplus": lambda z: np.logaddexp(0, z),
    "tanh": np.tanh,
}


def binary(a: np.ndarray, y: np.ndarray) -> np.ndarray:
    return -special.xlogy(y, a) - special.xlogy(1 - y, 1 - a)


@dataclass(frozen=True)
class Case:
    """A loss on an output activation: the loss of each element by hand, and the kind of target.

    `torch` is ``(F, z, y) -> loss`` in PyTorch, summed over outputs and averaged over samples.
    """

    loss: Loss
    activation: str
    element: Callable[[np.ndarray, np.ndarray], np.ndarray]
    targets: str = "real"
    torch: Callable[[Any, Any, Any], Any] | None = None
    n_outputs: int = N_OUTPUTS


def per_sample(function: str, **options: Any) -> Callable[[Any, Any, Any], Any]:
    return lambda F, z, y: getattr(F, function)(z, y, reduction="sum", **options) / z.shape[0]


def huber(a: np.ndarray, y: np.ndarray, delta: float) -> np.ndarray:
    r = np.abs(a - y)
    return np.where(r <= delta, r**2 / 2, delta * r - delta**2 / 2)


def pinball(a: np.ndarray, y: np.ndarray, q: float) -> np.ndarray:
    return np.where(y > a, q * (y - a), (1 - q) * (a - y))


def poisson(a: np.ndarray, y: np.ndarray) -> np.ndarray:
    return a - y + special.xlogy(y, y) - special.xlogy(y, a)


def cross_entropy(a: np.ndarray, y: np.ndarray) -> np.ndarray:
    return -special.xlogy(y, a)


def focal(a: np.ndarray, y: np.ndarray, gamma: float = 2.0) -> np.ndarray:
    return (1 - a) ** gamma * -special.xlogy(y, a) - a**gamma * special.xlogy(1 - y, 1 - a)


def focal_of_classes(a: np.ndarray, y: np.ndarray, gamma: float = 2.0) -> np.ndarray:
    return (1 - a) ** gamma * cross_entropy(a, y)


def focal_torch(F: Any, z: Any, y: Any) -> Any:
    p, q = z.sigmoid(), (-z).sigmoid()
    loss = y * q**2 * F.logsigmoid(z) + (1 - y) * p**2 * F.logsigmoid(-z)
    return -loss.sum() / z.shape[0]


def focal_of_classes_torch(F: Any, z: Any, y: Any) -> Any:
    log_p = F.log_softmax(z, dim=1)
    return -(y * (1 - log_p.exp()) ** 2 * log_p).sum() / z.shape[0]


def poisson_torch(F: Any, z: Any, y: Any) -> Any:
    # PyTorch leaves out the terms that do not depend on the prediction.
    constant = special.xlogy(y.numpy(), y.numpy()).sum() - y.numpy().sum()
    return (F.poisson_nll_loss(z, y, reduction="sum") + constant) / z.shape[0]


CASES = {
    "squared_error": Case(
        SquaredError(),
        "identity",
        lambda a, y: (a - y) ** 2 / 2,
        torch=lambda F, z, y: F.mse_loss(z, y, reduction="sum") / (2 * z.shape[0]),
    ),
    "squared_error tanh": Case(SquaredError(), "tanh", lambda a, y: (a - y) ** 2 / 2),
    "squared_error sigmoid": Case(SquaredError(), "sigmoid", lambda a, y: (a - y) ** 2 / 2),
    "squared_error softmax": Case(SquaredError(), "softmax", lambda a, y: (a - y) ** 2 / 2),
    "absolute_error": Case(
        AbsoluteError(), "identity", lambda a, y: np.abs(a - y), torch=per_sample("l1_loss")
    ),
    "huber": Case(
        Huber(), "identity", lambda a, y: huber(a, y, 1.0), torch=per_sample("huber_loss")
    ),
    "huber delta": Case(
        Huber(delta=0.3),
        "identity",
        lambda a, y: huber(a, y, 0.3),
        torch=per_sample("huber_loss", delta=0.3),
    ),
    "quantile": Case(Quantile(), "identity", lambda a, y: pinball(a, y, 0.5)),
    "quantile 0.9": Case(Quantile(0.9), "identity", lambda a, y: pinball(a, y, 0.9)),
    "poisson exp": Case(Poisson(), "exp", poisson, "counts", poisson_torch),
    "poisson softplus": Case(Poisson(), "softplus", poisson, "counts"),
    "log_loss one output": Case(
        LogLoss(),
        "sigmoid",
        binary,
        "fractions",
        per_sample("binary_cross_entropy_with_logits"),
        n_outputs=1,
    ),
    "log_loss sigmoid": Case(
        LogLoss(), "sigmoid", binary, "fractions", per_sample("binary_cross_entropy_with_logits")
    ),
    "log_loss softmax": Case(
        LogLoss(), "softmax", cross_entropy, "shares", per_sample("cross_entropy")
    ),
    "log_loss softmax, rows of any sum": Case(
        LogLoss(), "softmax", cross_entropy, "fractions", per_sample("cross_entropy")
    ),
    "log_loss multiclass sigmoid": Case(
        LogLoss(multiclass=True), "sigmoid", cross_entropy, "fractions"
    ),
    "log_loss multilabel softmax": Case(LogLoss(multiclass=False), "softmax", binary, "fractions"),
    "log_loss multiclass softplus": Case(
        # The prediction is clipped at 1, where its loss is 0.
        LogLoss(multiclass=True),
        "softplus",
        lambda a, y: -special.xlogy(y, np.minimum(a, 1)),
        "fractions",
    ),
    "focal one output": Case(Focal(), "sigmoid", focal, "fractions", focal_torch, n_outputs=1),
    "focal sigmoid": Case(Focal(), "sigmoid", focal, "fractions", focal_torch),
    "focal softmax": Case(Focal(), "softmax", focal_of_classes, "shares", focal_of_classes_torch),
    "focal softmax, rows of any sum": Case(
        Focal(), "softmax", focal_of_classes, "fractions", focal_of_classes_torch
    ),
    "focal 0.5 sigmoid": Case(
        Focal(gamma=0.5), "sigmoid", lambda a, y: focal(a, y, 0.5), "fractions"
    ),
    "focal 3.5 softmax": Case(
        Focal(gamma=3.5), "softmax", lambda a, y: focal_of_classes(a, y, 3.5), "shares"
    ),
    "focal multiclass sigmoid": Case(
        Focal(multiclass=True), "sigmoid", focal_of_classes, "fractions"
    ),
    "focal multilabel softmax": Case(Focal(multiclass=False), "softmax", focal, "fractions"),
    "focal multiclass softplus": Case(
        Focal(multiclass=True),
        "softplus",
        lambda a, y: focal_of_classes(np.minimum(a, 1), y),
        "fractions",
    ),
}
IN_TORCH = {name: case for name, case in CASES.items() if case.torch}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def data(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Logits and targets that suit the case."""
    rng = np.random.default_rng(11)
    shape = (N_SAMPLES, case.n_outputs)
    z = rng.normal(size=shape) * 1.5
    y = {
        "real": rng.normal(size=shape),
        "counts": rng.poisson(1.2, size=shape).astype(float),
        "fractions": rng.uniform(size=shape).round(1),
        "shares": rng.dirichlet(np.ones(case.n_outputs), size=N_SAMPLES),
    }[case.targets]
    return z, y


def test_the_table_has_every_loss():
    assert {type(case.loss) for case in CASES.values()} == set(LOSSES.values())
    assert all(name == cls.name for name, cls in LOSSES.items())


# --- Values and derivatives ---------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@each_case
def test_value_equals_the_formula(case, reduction, dtype, backend):
    z, y = data(case)
    z, y = z.astype(dtype), y.astype(dtype)
    elements = case.element(G[case.activation](z.astype("float64")), y.astype("float64"))
    expected = elements.sum() / (N_SAMPLES if reduction == "mean" else 1)
    value, _ = evaluate(
        case.loss, z, y, case.activation, backend=backend, dtype=dtype, reduction=reduction
    )
    assert value == pytest.approx(expected, rel=1e-13 if dtype == "float64" else 2e-6)


@each_case
def test_derivative_equals_differences(case, backend):
    z, y = data(case)
    _, slope = evaluate(case.loss, z, y, case.activation, backend=backend)

    def value(step):
        return case.element(G[case.activation](z + step), y).sum() / N_SAMPLES

    expected = np.empty_like(z)
    for index in np.ndindex(z.shape):
        step = np.zeros_like(z)
        step[index] = 1e-5
        expected[index] = (value(step) - value(-step)) / 2e-5
    np.testing.assert_allclose(slope, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("case", IN_TORCH.values(), ids=IN_TORCH)
def test_value_and_derivative_equal_torch(case, backend):
    torch = pytest.importorskip("torch")
    z, y = data(case)
    logits = torch.tensor(z, requires_grad=True)
    expected = case.torch(torch.nn.functional, logits, torch.tensor(y))
    (expected_slope,) = torch.autograd.grad(expected, logits)
    value, slope = evaluate(case.loss, z, y, case.activation, backend=backend)
    assert value == pytest.approx(float(expected.detach()), rel=1e-13)
    np.testing.assert_allclose(slope, expected_slope, rtol=1e-12, atol=1e-15)


@each_case
def test_derivative_in_float32(case, backend):
    z, y = (x.astype("float32") for x in data(case))
    _, exact = evaluate(case.loss, z, y, case.activation, backend=backend)
    _, slope = evaluate(case.loss, z, y, case.activation, backend=backend, dtype="float32")
    np.testing.assert_allclose(slope, exact, rtol=1e-5, atol=1e-6)


SKLEARN = {
    "squared_error": (
        SquaredError(),
        "identity",
        lambda y, a: metrics.mean_squared_error(y, a) * N_OUTPUTS / 2,
    ),
    "absolute_error": (
        AbsoluteError(),
        "identity",
        lambda y, a: metrics.mean_absolute_error(y, a) * N_OUTPUTS,
    ),
    "quantile": (
        Quantile(0.7),
        "identity",
        lambda y, a: metrics.mean_pinball_loss(y, a, alpha=0.7) * N_OUTPUTS,
    ),
    "poisson": (
        Poisson(),
        "exp",
        lambda y, a: metrics.mean_poisson_deviance(y.ravel(), a.ravel()) * N_OUTPUTS / 2,
    ),
    "log_loss": (LogLoss(), "softmax", lambda y, a: metrics.log_loss(y, a)),
}


@pytest.mark.parametrize(("loss", "activation", "metric"), SKLEARN.values(), ids=SKLEARN)
def test_value_equals_scikit_learn(loss, activation, metric, backend, rng):
    z = rng.normal(size=(N_SAMPLES, N_OUTPUTS))
    y = np.eye(N_OUTPUTS)[rng.integers(N_OUTPUTS, size=N_SAMPLES)]
    value, _ = evaluate(loss, z, y, activation, backend=backend)
    assert value == pytest.approx(metric(y, G[activation](z)), rel=1e-12)


def test_log_loss_of_one_output_equals_scikit_learn(backend, rng):
    z, y = rng.normal(size=(N_SAMPLES, 1)), rng.integers(2, size=N_SAMPLES)
    weight = rng.uniform(0.1, 2, size=N_SAMPLES)
    value, _ = evaluate("log_loss", z, y, "sigmoid", backend=backend, sample_weight=weight)
    expected = metrics.log_loss(y, special.expit(z[:, 0]), sample_weight=weight)
    assert value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("loss", "prediction", "y", "value", "slope"),
    [
        (SquaredError(), [3.0, -1.0], [1.0, -1.0], 2.0, [2.0, 0.0]),
        # The derivative is a sign: one of the documents has |a - y|, its program a - y.
        (AbsoluteError(), [3.0, -1.0], [1.0, -1.0], 2.0, [1.0, 0.0]),
        (AbsoluteError(), [-3.0, 1.0], [1.0, 2.0], 5.0, [-1.0, -1.0]),
        (Huber(delta=2.0), [5.0, 1.0], [0.0, 0.0], 8.5, [2.0, 1.0]),
        (Huber(delta=2.0), [-2.0, -9.0], [0.0, 0.0], 18.0, [-2.0, -2.0]),
        (Quantile(0.25), [3.0, -1.0], [1.0, 1.0], 2.0, [0.75, -0.25]),
        (Quantile(0.25), [1.0, 1.0], [1.0, 1.0], 0.0, [0.25, 0.25]),
        (Poisson(), [2.0, 1.0], [0.0, 1.0], 2.0, [1.0, 0.0]),
        (Poisson(), [1.0, 1.0], [math.e, 1.0], 1.0, [1 - math.e, 0.0]),
    ],
)
def test_value_and_derivative_by_hand(loss, prediction, y, value, slope, backend):
    got, gradient = evaluate(loss, [prediction], [y], backend=backend)
    assert got == pytest.approx(value, rel=1e-15, abs=1e-15)
    np.testing.assert_allclose(gradient, [slope], rtol=1e-15, atol=1e-15)


def with_gamma_zero() -> dict[str, tuple[Loss, Case]]:
    cases = {name: case for name, case in CASES.items() if isinstance(case.loss, LogLoss)}
    return {
        name: (Focal(gamma=0, multiclass=case.loss.multiclass), case)
        for name, case in cases.items()
        if not isinstance(case.loss, Focal)
    }


@pytest.mark.parametrize(("loss", "case"), with_gamma_zero().values(), ids=with_gamma_zero().keys())
def test_the_focal_loss_of_gamma_zero_is_the_log_loss(loss, case, backend):
    z, y = data(case)
    value, slope = evaluate(loss, z, y, case.activation, backend=backend)
    expected, expected_slope = evaluate(case.loss, z, y, case.activation, backend=backend)
    assert value == pytest.approx(expected, rel=1e-14)
    np.testing.assert_allclose(slope, expected_slope, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(("gamma", "share"), [(1.0, 0.1), (2.0, 0.01), (5.0, 1e-5)])
def test_a_row_right_at_nine_tenths_counts_for_a_power_of_a_tenth(gamma, share, backend):
    # The example of the paper: with gamma = 2 such a row has a hundredth of its log loss.
    binary, classes = [[math.log(9)]], [[math.log(9), 0.0]]
    for z, y, activation in ((binary, [1], "sigmoid"), (classes, [0], "softmax")):
        value, _ = evaluate(Focal(gamma=gamma), z, y, activation, backend=backend)
        assert value == pytest.approx(-share * math.log(0.9), rel=1e-13)


def test_the_error_term_of_matching_pairs_is_prediction_minus_target(backend, rng):
    # (BP1) collapses; one of the documents has the sign the other way round.
    z = rng.normal(size=(N_SAMPLES, N_OUTPUTS))
    y = np.eye(N_OUTPUTS)[rng.integers(N_OUTPUTS, size=N_SAMPLES)]
    pairs = [("squared_error", "identity"), ("log_loss", "sigmoid"), ("log_loss", "softmax")]
    for loss, activation in [*pairs, ("poisson", "exp")]:
        _, slope = evaluate(loss, z, y, activation, backend=backend)
        expected = (G[activation](z) - y) / N_SAMPLES
        np.testing.assert_allclose(slope, expected, rtol=1e-13, atol=1e-16)


def test_a_quantile_minimises_its_loss():
    y = np.random.default_rng(12).normal(size=(999, 1))
    for q in (0.1, 0.5, 0.8):
        best = np.quantile(y, q)
        around = [best - 0.1, best - 0.02, best, best + 0.02, best + 0.1]
        values = [evaluate(Quantile(q), np.full_like(y, p), y)[0] for p in around]
        assert min(values) == values[2]


# --- Extremes -----------------------------------------------------------------------------------

EXTREME = np.array([[-1e4], [-104.0], [-50.0], [-17.0], [-1.0], [-0.0], [0.0]], "float32")
EXTREME = np.concatenate([EXTREME, -EXTREME])


@each_dtype
@pytest.mark.parametrize("y", [0.0, 1.0, 0.25])
def test_log_loss_from_a_sigmoid_at_extremes(y, dtype, backend):
    for logit in EXTREME.tolist():
        value, slope = evaluate("log_loss", [logit], [[y]], "sigmoid", backend=backend, dtype=dtype)
        (z,) = logit
        exact = y * np.logaddexp(0, -z) + (1 - y) * np.logaddexp(0, z)
        eps = float(np.finfo(dtype).eps)
        assert value == pytest.approx(exact, rel=8 * eps, abs=1e-44), z
        assert float(slope[0, 0]) == pytest.approx(
            special.expit(z) - y, rel=8 * eps, abs=2 * eps
        ), z


@each_dtype
@pytest.mark.parametrize("y", [0.0, 1.0])
def test_multiclass_log_loss_from_sigmoids_at_extremes(y, dtype, backend):
    loss = LogLoss(multiclass=True)
    for logit in EXTREME.tolist():
        value, slope = evaluate(
            loss, [logit * 2], [[y, 0.0]], "sigmoid", backend=backend, dtype=dtype
        )
        (z,) = logit
        eps = float(np.finfo(dtype).eps)
        assert value == pytest.approx(y * np.logaddexp(0, -z), rel=8 * eps, abs=1e-44), z
        # Here no digits cancel, so that the relative accuracy holds everywhere.
        expected = [-y * special.expit(-z), 0.0]
        np.testing.assert_allclose(slope[0], expected, rtol=8 * eps, atol=1e-44)


@each_dtype
@pytest.mark.parametrize("true", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "row",
    [
        [1e4, -1e4, 0.0, 1e4],
        [-1e4, -1e4, -1e4, -1e4],
        [1e4, 1e4, 1e4, 1e4],
        [0.0, -50.0, -104.0, -16.0],
        [1e4, 9999.0, 9998.0, -1.0],
        [-0.0, 0.0, 1e-8, -1e-8],
    ],
)
def test_log_loss_from_a_softmax_at_extremes(row, true, dtype, backend):
    y = np.eye(4)[true]
    value, slope = evaluate("log_loss", [row], [y], "softmax", backend=backend, dtype=dtype)
    z = np.array(row, dtype).astype("float64")
    eps = float(np.finfo(dtype).eps)
    exact = special.logsumexp(z - z.max()) - (z - z.max())[true]
    # log(1 + x) from 1 + x is right to a few units of 1.
    assert value == pytest.approx(exact, rel=8 * eps, abs=4 * eps)
    np.testing.assert_allclose(slope[0], special.softmax(z) - y, rtol=16 * eps, atol=4 * eps)


GAMMAS = [0.0, 0.5, 1.0, 2.0, 5.0]


@each_dtype
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("y", [0.0, 1.0, 0.25])
def test_focal_loss_from_a_sigmoid_at_extremes(y, gamma, dtype, backend):
    for logit in EXTREME.tolist():
        value, slope = evaluate(
            Focal(gamma=gamma), [logit], [[y]], "sigmoid", backend=backend, dtype=dtype
        )
        (z,) = logit
        p, q = special.expit(z), special.expit(-z)
        minus_log_p, minus_log_q = np.logaddexp(0, -z), np.logaddexp(0, z)
        on, off = y * q**gamma, (1 - y) * p**gamma
        # What is exp(gamma log q) loses digits in proportion to the exponent.
        eps = (1 + 60 * gamma) * float(np.finfo(dtype).eps)
        assert value == pytest.approx(
            on * minus_log_p + off * minus_log_q, rel=8 * eps, abs=1e-44
        ), z
        expected = off * (gamma * q * minus_log_q + p) - on * (gamma * p * minus_log_p + q)
        assert float(slope[0, 0]) == pytest.approx(expected, rel=8 * eps, abs=2 * eps), z


@each_dtype
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("row", [
    [1e4, -1e4, 0.0, 1e4],
    [-1e4, -1e4, -1e4, -1e4],
    [0.0, -50.0, -104.0, -16.0],
    [40.0, 0.0, 0.0, 0.0],
    [1e4, 9999.0, 9998.0, -1.0],
    [-0.0, 0.0, 1e-8, -1e-8],
])  # fmt: skip
def test_focal_loss_from_a_softmax_at_extremes(row, gamma, dtype, backend):
    z = np.array(row, dtype).astype("float64")
    eps = float(np.finfo(dtype).eps)
    for true in range(4):
        value, slope = evaluate(
            Focal(gamma=gamma), [row], [np.eye(4)[true]], "softmax", backend=backend, dtype=dtype
        )
        log_p = special.log_softmax(z)
        p, log_p = np.exp(log_p), log_p[true]
        q = np.delete(p, true).sum()
        assert value == pytest.approx(q**gamma * -log_p, rel=80 * eps, abs=4 * eps)
        h = -(q**gamma) - gamma * p[true] * (q ** (gamma - 1) * -log_p if q else 0.0)
        expected = -p * h
        expected[true] = q * h
        np.testing.assert_allclose(slope[0], expected, rtol=80 * eps, atol=16 * eps)


@each_dtype
@pytest.mark.parametrize("gamma", [0.0, 0.1, 2.0, 50.0])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax", "identity", "softplus"])
@pytest.mark.parametrize("multiclass", [None, True, False])
def test_the_focal_loss_of_any_prediction_is_finite(multiclass, activation, gamma, dtype, backend):
    loss = Focal(gamma=gamma, multiclass=multiclass)
    ends = [-1e30, -1e4, -20.0, -1e-30, 0.0, 1e-30, 1e-4, 0.5, 1.0, 20.0, 1e4, 1e30]
    z = np.array(list(zip(ends, reversed(ends), strict=True)))
    for y in ([1.0, 0.0], [0.0, 1.0], [0.5, 0.5]):
        value, slope = evaluate(
            loss, z, np.tile(y, (len(z), 1)), activation, backend=backend, dtype=dtype
        )
        assert 0.0 <= value < math.inf
        assert np.isfinite(slope).all()


@each_dtype
@pytest.mark.parametrize("loss", ["log_loss", "focal", Focal(gamma=0.5)])
def test_a_certain_and_right_prediction_costs_nothing(loss, dtype, backend):
    value, slope = evaluate(loss, [[1e4], [-1e4]], [1, 0], "sigmoid",
                            backend=backend, dtype=dtype)  # fmt: skip
    assert (value, slope.any()) == (0.0, False)
    value, slope = evaluate(loss, [[1e4, -1e4], [-1e4, 1e4]], [0, 1], "softmax",
                            backend=backend, dtype=dtype)  # fmt: skip
    assert (value, slope.any()) == (0.0, False)


@each_dtype
def test_a_certain_and_wrong_prediction_costs_its_log_loss(dtype, backend):
    for z, y, activation in (([[-1e4]], [1], "sigmoid"), ([[-1e4, 0.0]], [0], "softmax")):
        value, slope = evaluate("focal", z, y, activation, backend=backend, dtype=dtype)
        assert value == 1e4
        assert slope[0, 0] == -1.0


@each_dtype
@pytest.mark.parametrize("cls", [LogLoss, Focal])
def test_probabilities_of_zero_and_one_are_clipped(cls, dtype, backend):
    # Not from logits, so a probability can be 0: the loss is that of the spacing at 1.
    eps = float(np.finfo(dtype).eps)
    value, slope = evaluate(cls(), [[0.0], [1.0]], [1, 0], "identity", backend=backend, dtype=dtype)
    assert value == pytest.approx(-math.log(eps), rel=1e-6)
    assert not slope.any()
    value, slope = evaluate(
        cls(multiclass=True), [[0.0, 1.0]], [[1.0, 0.0]], backend=backend, dtype=dtype
    )
    assert value == pytest.approx(-math.log(eps), rel=1e-6)
    assert not slope.any()


@each_dtype
def test_poisson_with_no_counts_and_small_rates(dtype, backend):
    value, slope = evaluate("poisson", [[-50.0], [-1e4]], [0, 0], "exp",
                            backend=backend, dtype=dtype)  # fmt: skip
    assert value == pytest.approx(math.exp(-50) / 2, rel=1e-6)
    assert slope[1, 0] == 0
    # A rate of 0 is not from a logarithm: it is taken as the spacing at 1.
    eps = float(np.finfo(dtype).eps)
    value, slope = evaluate("poisson", [[0.0]], [3], backend=backend, dtype=dtype)
    assert value == pytest.approx(eps - 3 + 3 * math.log(3 / eps), rel=1e-6)
    assert slope[0, 0] == 0


# --- Label smoothing and class labels -----------------------------------------------------------


@pytest.mark.parametrize("cls", [LogLoss, Focal])
@pytest.mark.parametrize("smoothing", [0.1, 0.5, 0.99])
@pytest.mark.parametrize(
    ("activation", "n_outputs", "n_classes"),
    [("softmax", 4, 4), ("softmax", 2, 2), ("sigmoid", 1, 2), ("sigmoid", 4, 2)],
)
def test_label_smoothing_equals_smoothed_targets(
    activation, n_outputs, n_classes, smoothing, cls, backend, rng
):
    z = rng.normal(size=(N_SAMPLES, n_outputs))
    labels = rng.integers(max(n_outputs, 2), size=N_SAMPLES)
    y = np.eye(n_outputs)[labels] if n_outputs > 1 else labels[:, None].astype(float)
    smoothed = (1 - smoothing) * y + smoothing / n_classes
    value, slope = evaluate(cls(), z, smoothed, activation, backend=backend)
    for targets in (y, labels):
        got, gradient = evaluate(
            cls(label_smoothing=smoothing), z, targets, activation, backend=backend
        )
        assert got == pytest.approx(value, rel=1e-13)
        np.testing.assert_allclose(gradient, slope, rtol=1e-12, atol=1e-16)
    if activation == "softmax":
        np.testing.assert_allclose(smoothed.sum(axis=1), 1.0, rtol=1e-15)


def test_label_smoothing_equals_torch(backend, rng):
    torch = pytest.importorskip("torch")
    z, labels = rng.normal(size=(N_SAMPLES, 5)), rng.integers(5, size=N_SAMPLES)
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(z), torch.tensor(labels), label_smoothing=0.2
    )
    value, _ = evaluate(LogLoss(label_smoothing=0.2), z, labels, "softmax", backend=backend)
    assert value == pytest.approx(float(expected), rel=1e-13)


@each_dtype
@pytest.mark.parametrize("loss", ["log_loss", "focal"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("kind", ["int64", "int32", "uint8", "bool"])
def test_class_labels_equal_one_hot_targets(kind, activation, loss, dtype, backend, rng):
    n_classes = 2 if kind == "bool" else 4
    z = rng.normal(size=(N_SAMPLES, n_classes))
    labels = rng.integers(n_classes, size=N_SAMPLES)
    one_hot = np.eye(n_classes)[labels]
    options = {"backend": backend, "dtype": dtype}
    if kind == "bool":
        # Booleans are values of a target, not class labels.
        one_hot, labels = one_hot.astype(bool), one_hot
    else:
        labels = labels.astype(kind)
    value, slope = evaluate(loss, z, labels, activation, **options)
    expected, expected_slope = evaluate(loss, z, one_hot, activation, **options)
    assert value == expected
    assert slope.tobytes() == expected_slope.tobytes()


def test_one_output_takes_a_column_or_a_row_of_targets(backend, rng):
    z = rng.normal(size=(N_SAMPLES, 1))
    labels = rng.integers(2, size=N_SAMPLES)
    for y in (labels, labels[:, None], labels.astype(bool), labels.astype(float), labels.tolist()):
        value, _ = evaluate("log_loss", z, y, "sigmoid", backend=backend)
        assert value == evaluate("log_loss", z, labels, "sigmoid", backend=backend)[0]
    y = rng.normal(size=N_SAMPLES)
    first, _ = evaluate("squared_error", z, y, backend=backend)
    assert first == evaluate("squared_error", z, y[:, None], backend=backend)[0]


# --- Sample weights -----------------------------------------------------------------------------

REPEATS = np.array([2, 1, 0, 3, 1, 0, 1, 5, 1])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@each_case
def test_weights_equal_repeated_samples(case, reduction, backend):
    z, y = data(case)
    value, slope = evaluate(
        case.loss, z, y, case.activation, backend=backend, reduction=reduction,
        sample_weight=REPEATS,
    )  # fmt: skip
    expected, repeated = evaluate(
        case.loss, z.repeat(REPEATS, 0), y.repeat(REPEATS, 0), case.activation, backend=backend,
        reduction=reduction,
    )  # fmt: skip
    assert value == pytest.approx(expected, rel=1e-13)
    summed = np.zeros_like(z)
    np.add.at(summed, np.arange(N_SAMPLES).repeat(REPEATS), repeated)
    np.testing.assert_allclose(slope, summed, rtol=1e-12, atol=1e-16)


@each_case
def test_weight_zero_equals_leaving_the_sample_out(case, backend):
    z, y = data(case)
    weight = np.array([0.5, 0.0, 2.0, 0.0, 1.0, 0.1, 0.0, 3.0, 1.0])
    kept = weight > 0
    value, slope = evaluate(case.loss, z, y, case.activation, backend=backend, sample_weight=weight)
    expected, expected_slope = evaluate(
        case.loss, z[kept], y[kept], case.activation, backend=backend, sample_weight=weight[kept]
    )
    assert value == pytest.approx(expected, rel=1e-14)
    np.testing.assert_allclose(slope[kept], expected_slope, rtol=1e-13, atol=1e-16)
    assert not slope[~kept].any()


@pytest.mark.parametrize("scale", [1.0, 1e-3, 700.0])
def test_equal_weights_are_no_weights(scale, backend):
    case = CASES["log_loss softmax"]
    z, y = data(case)
    plain = evaluate(case.loss, z, y, case.activation, backend=backend)
    weighted = evaluate(
        case.loss, z, y, case.activation, backend=backend, sample_weight=np.full(N_SAMPLES, scale)
    )
    assert weighted[0] == pytest.approx(plain[0], rel=1e-14)
    np.testing.assert_allclose(weighted[1], plain[1], rtol=1e-13)


@pytest.mark.parametrize(
    ("weight", "error"),
    [
        (np.ones(N_SAMPLES - 1), ValueError),
        (np.ones((N_SAMPLES, 1)), ValueError),
        (np.full(N_SAMPLES, -1.0), ValueError),
        (np.zeros(N_SAMPLES), ValueError),
        (np.full(N_SAMPLES, np.nan), ValueError),
        (np.full(N_SAMPLES, np.inf), ValueError),
        (np.ones(N_SAMPLES, bool), TypeError),
        (["a"] * N_SAMPLES, TypeError),
    ],
)
def test_bad_weights_are_named(weight, error, backend):
    z, y = data(CASES["squared_error"])
    with pytest.raises(error, match=r"^sample_weight "):
        evaluate("squared_error", z, y, backend=backend, sample_weight=weight)


# --- Targets ------------------------------------------------------------------------------------

X3 = np.zeros((4, 3))
X1 = np.zeros((4, 1))
BAD_TARGETS = {
    "a column too many": ("squared_error", "identity", X3, np.zeros((4, 4)), ValueError),
    "a column too few": ("squared_error", "identity", X3, np.zeros((4, 2)), ValueError),
    "one column for three outputs": (
        "squared_error", "identity", X3, np.zeros((4, 1)), ValueError,
    ),
    "three axes": ("squared_error", "identity", X3, np.zeros((4, 3, 1)), ValueError),
    "a number": ("squared_error", "identity", X1, 1.0, ValueError),
    "one axis for three outputs": ("squared_error", "identity", X3, np.zeros(4), ValueError),
    "a row too few": ("squared_error", "identity", X3, np.zeros((3, 3)), ValueError),
    "a row too many": ("squared_error", "identity", X1, np.zeros(5), ValueError),
    "a label too few": ("log_loss", "softmax", X3, np.zeros(3, int), ValueError),
    "labels in a column": ("log_loss", "softmax", X3, np.zeros((4, 1), int), ValueError),
    "no rows": ("squared_error", "identity", X1, np.zeros(0), ValueError),
    "label too large": ("log_loss", "softmax", X3, np.array([0, 1, 2, 3]), ValueError),
    "label negative": ("log_loss", "softmax", X3, np.array([0, 1, 2, -1]), ValueError),
    "label too large, sigmoid": ("log_loss", "sigmoid", X3, np.array([0, 1, 2, 3]), ValueError),
    "label 2 of one output": ("log_loss", "sigmoid", X1, np.array([0, 1, 2, 1]), ValueError),
    "labels of -1 and 1": ("log_loss", "sigmoid", X1, np.array([-1, 1, 1, 1]), ValueError),
    "fractional labels": ("log_loss", "softmax", X3, np.array([0, 0.5, 1, 2]), TypeError),
    "labels as floats": ("log_loss", "softmax", X3, np.array([0.0, 1.0, 1.0, 2.0]), TypeError),
    "booleans as labels": ("log_loss", "softmax", X3, np.zeros(4, bool), TypeError),
    "probability above 1": ("log_loss", "softmax", X3, np.full((4, 3), 1.01), ValueError),
    "probability below 0": ("log_loss", "sigmoid", X3, np.full((4, 3), -0.01), ValueError),
    "probability above 1, focal": ("focal", "softmax", X3, np.full((4, 3), 1.01), ValueError),
    "label too large, focal": ("focal", "softmax", X3, np.array([0, 1, 2, 3]), ValueError),
    "fractional labels, focal": ("focal", "softmax", X3, np.array([0, 0.5, 1, 2]), TypeError),
    "negative count": ("poisson", "exp", X1, np.array([0, 1, -1, 2]), ValueError),
    "NaN": ("squared_error", "identity", X1, np.array([0, 1, np.nan, 2]), ValueError),
    "NaN where there is a range": ("log_loss", "sigmoid", X1, np.full(4, np.nan), ValueError),
    "infinity": ("squared_error", "identity", X1, np.array([0, 1, np.inf, 2]), ValueError),
    "infinite count": ("poisson", "exp", X1, np.array([0, 1, np.inf, 2]), ValueError),
    "complex": ("squared_error", "identity", X1, np.zeros(4, complex), TypeError),
    "strings": ("log_loss", "sigmoid", X1, np.array(["a", "b", "a", "b"]), TypeError),
    "list of strings": ("log_loss", "softmax", X3, ["a", "b", "c", "a"], TypeError),
    "objects": ("squared_error", "identity", X1, [None, 1, 2, 3], TypeError),
    "ragged rows": ("squared_error", "identity", X1, [[1], [1, 2], [3], [4]], TypeError),
    "none": ("squared_error", "identity", X1, None, TypeError),
}  # fmt: skip


@pytest.mark.parametrize(
    ("loss", "activation", "x", "y", "error"), BAD_TARGETS.values(), ids=BAD_TARGETS
)
def test_bad_targets_are_named(loss, activation, x, y, error, backend):
    with pytest.raises(error, match=r"^y "):
        evaluate(loss, x, y, activation, backend=backend)


def test_a_target_too_large_for_float32_is_named(backend):
    y = np.array([0, 1, 1e39, 2])
    with pytest.raises(ValueError, match=r"^y contains a value too large for float32"):
        evaluate("squared_error", X1, y, backend=backend, dtype="float32")


def test_errors_show_what_was_got_and_expected():
    with pytest.raises(ValueError, match=r"from 0 to 2, got 0 to 3"):
        evaluate("log_loss", X3, np.array([0, 1, 2, 3]), "softmax")
    with pytest.raises(ValueError, match=r"\(4,\) or \(4, 3\), got \(4, 2\)"):
        evaluate("log_loss", X3, np.zeros((4, 2)), "softmax")
    with pytest.raises(ValueError, match=r"must have shape \(4, 3\), got \(4,\)"):
        evaluate("squared_error", X3, np.zeros(4))


# --- Names and arguments ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "option", "values"),
    [
        (Huber, "delta", [0, 0.0, -1.0]),
        (Quantile, "quantile", [0, 1, 0.0, 1.0, -0.5, 1.5]),
        (LogLoss, "label_smoothing", [-0.1, 1, 1.0, 2.0]),
        (Focal, "label_smoothing", [-0.1, 1, 1.0, 2.0]),
        (Focal, "gamma", [-0.1, -1]),
    ],
)
def test_bad_numbers_are_named(cls, option, values):
    for value in (*values, math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=rf"^{option} must be a number.*got {value!r}"):
            cls(**{option: value})
    for value in ("0.5", True, None, [0.5]):
        with pytest.raises(TypeError, match=rf"^{option} must be a number"):
            cls(**{option: value})


@pytest.mark.parametrize("value", ["yes", "", 2, -1.0])
def test_multiclass_is_true_false_or_none(value):
    for cls in (LogLoss, Focal):
        with pytest.raises(TypeError, match=r"^multiclass must be True, False or None"):
            cls(multiclass=value)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"^loss='logloss' is not known\. Did you mean 'log_loss'"):
        evaluate("logloss", X1, np.zeros(4), "sigmoid")
    for value in (None, LogLoss, 3):
        with pytest.raises(TypeError, match=r"^loss must be a name or an instance of Loss"):
            evaluate(value, X1, np.zeros(4), "sigmoid")
    with pytest.raises(ValueError, match=r"^reduction must be 'mean' or 'sum', got 'max'"):
        evaluate("log_loss", X1, np.zeros(4), "sigmoid", reduction="max")
