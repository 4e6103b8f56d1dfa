"""Every gradient against two independent oracles: central differences and PyTorch's autograd.

Central differences know nothing but the value of the objective. The networks and losses for
autograd are written here, from the formulas, and share no code with the library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from xpmlp import Dense, Dropout, Network
from xpmlp.activations import ACTIVATIONS
from xpmlp.backends import get_backend
from xpmlp.losses import (
    LOSSES,
    AbsoluteError,
    Focal,
    Huber,
    LogLoss,
    Poisson,
    Quantile,
    SquaredError,
)

CPU = get_backend("cpu", "numpy")
ALL_ACTIVATIONS = sorted({cls.name for cls in ACTIVATIONS.values()})

DELTA, QUANTILE, SMOOTHING, GAMMA = 0.7, 0.3, 0.2, 1.5
CASES = {
    "squared_error": SquaredError(),
    "absolute_error": AbsoluteError(),
    "huber": Huber(DELTA),
    "quantile": Quantile(QUANTILE),
    "poisson": Poisson(),
    "log_loss": LogLoss(),
    "log_loss, multiclass": LogLoss(multiclass=True),
    "log_loss, binary": LogLoss(multiclass=False),
    "log_loss, smooth": LogLoss(label_smoothing=SMOOTHING),
    "log_loss, smooth multiclass": LogLoss(label_smoothing=SMOOTHING, multiclass=True),
    "log_loss, smooth binary": LogLoss(label_smoothing=SMOOTHING, multiclass=False),
    "focal": Focal(gamma=GAMMA),
    "focal, multiclass": Focal(gamma=GAMMA, multiclass=True),
    "focal, smooth multiclass": Focal(gamma=GAMMA, label_smoothing=SMOOTHING, multiclass=True),
    "focal, smooth binary": Focal(gamma=GAMMA, label_smoothing=SMOOTHING, multiclass=False),
}
OF_PROBABILITIES = ("log_loss", "focal")
# Left to autograd, which is much faster than difference quotients.
AUTOGRAD_ONLY = [
    f"{loss}, smooth {kind}" for loss in OF_PROBABILITIES for kind in ("multiclass", "binary")
]
KINDS = ("one", "several", "labels")
LOSS_KINDS = [
    (case, kind)
    for case, loss in CASES.items()
    for kind in KINDS
    if kind != "labels" or loss.labels_allowed(2)
]
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "weighted": {"sample_weight": [0.5, 2.0, 1.25]},
    "penalised": {"alpha": 0.3, "l1": 0.2},
    "summed": {"reduction": "sum"},
}

# The step of the difference quotients, and how far the data stays from every kink: farther than
# any step moves an activation, and far enough for the logarithms to be nearly straight. Where a
# loss is clipped it is constant, so that only the first matters.
STEP = 3e-6
MARGIN = 0.05
CLIPPED_MARGIN = 100 * STEP


# --- Problems away from kinks -----------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """A network with data at which the objective is smooth."""

    network: Network
    X: np.ndarray  # (n, n_features)
    y: np.ndarray  # (n, k), (n,) for one output or labels
    case: str


def make_problem(
    layers: list[Any],
    case: str,
    kind: str,
    *,
    n_features: int = 2,
    n_samples: int = 3,
    backend: Any = CPU,
) -> Problem:
    """Draw parameters and data until no kink is near and every branch of the loss is taken."""
    network = Network(n_features, layers, backend=backend)
    dropout = any(isinstance(layer, Dropout) for layer in layers)
    draw = np.random.default_rng(0)
    for _ in range(5000):
        # Away from 0, where the L1 penalty has its kink.
        theta = draw.choice([-1.0, 1.0], network.n_parameters)
        theta *= draw.uniform(0.2, 1.2, network.n_parameters)
        X = draw.normal(size=(n_samples, n_features))
        y = draw_target(draw, case, kind, n_samples, network.n_outputs)
        set_parameters(network, theta)
        # Masks change the activations, so kinks cannot be looked for: only smooth functions then.
        if dropout or is_smooth(network, X, y, case):
            return Problem(network, X, y, case)
    raise AssertionError(f"no smooth data for {layers}, {case}, {kind}")


def draw_target(
    draw: np.random.Generator, case: str, kind: str, n_samples: int, k: int
) -> np.ndarray:
    if kind == "labels":
        return draw.permutation(np.arange(n_samples) % k)
    shape = (n_samples,) if kind == "one" else (n_samples, k)
    if case == "poisson":
        return draw.poisson(1.5, size=shape).astype(float)
    if case.startswith(OF_PROBABILITIES):
        # The ends 0 and 1 among values between; rows of several outputs do not add up to 1.
        return np.clip(draw.uniform(-0.3, 1.3, size=shape), 0.0, 1.0)
    return draw.normal(size=shape)


def is_smooth(network: Network, X: np.ndarray, y: np.ndarray, case: str) -> bool:
    """Whether no kink is near, and values lie on both sides of each."""
    backend = network.backend
    for values in network.trace(X):
        z = backend.to_host(values.z)
        if values.layer.activation.name in ("relu", "leaky_relu", "elu", "selu") and not (
            np.abs(z).min() > MARGIN and (z > 0).any() and (z < 0).any()
        ):
            return False
    a = backend.to_host(values.a)
    output = network.output_activation.name
    if case in ("absolute_error", "quantile", "huber"):
        r = a - y.reshape(a.shape)
        r = np.abs(r) - DELTA if case == "huber" else r
        return bool(np.abs(r).min() > MARGIN and (r > 0).any() and (r < 0).any())
    if case == "poisson":
        inside, distance = a > 0, np.abs(a)
        leaves = output not in ("exp", "softplus", "sigmoid", "softmax")
    elif case.startswith(OF_PROBABILITIES):
        inside, distance = (a > 0) & (a < 1), np.minimum(np.abs(a), np.abs(1 - a))
        leaves = output not in ("sigmoid", "softmax")
    else:
        return True
    if output == "relu":  # an output of 0 is clipped, and stays so
        distance = np.where(z < 0, 1.0, distance)
    margin = np.where(inside, MARGIN, CLIPPED_MARGIN)
    return bool((distance > margin).all() and inside.any() and inside.all() != leaves)


def hidden_problem(activation: str, case: str, kind: str) -> Problem:
    """`activation` in a hidden layer, before an output activation that suits the loss."""
    k = 1 if kind == "one" else 2
    output = "identity"
    if case == "poisson":
        output = "softplus"
    elif case.startswith(OF_PROBABILITIES):
        output = "sigmoid" if k == 1 or "binary" in case else "softmax"
    return make_problem([Dense(3, activation), Dense(k, output)], case, kind)


def output_problem(activation: str, case: str, kind: str) -> Problem:
    """`activation` in the output layer, behind a hidden layer of tanh."""
    k = 1 if kind == "one" else 2
    return make_problem([Dense(3, "tanh"), Dense(k, activation)], case, kind)


PROBLEMS = {"hidden": hidden_problem, "output": output_problem}


# --- The first oracle -------------------------------------------------------------------------


def set_parameters(network: Network, theta: np.ndarray) -> None:
    network.backend.copy(network.backend.from_host(theta), network.parameters)


def parameters_of(network: Network) -> np.ndarray:
    return np.array(network.backend.to_host(network.parameters))


def numerical_gradient(problem: Problem, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Central differences of the objective by the parameters and by X."""
    network, loss = problem.network, CASES[problem.case]
    theta, X = parameters_of(network), problem.X.copy()

    def differentiate(point: np.ndarray) -> np.ndarray:
        quotient = np.zeros_like(point)
        for index in np.ndindex(point.shape):
            start = point[index]
            values, places = [], []
            for place in (start + STEP, start - STEP):
                point[index] = place
                set_parameters(network, theta)
                values.append(network.loss_and_grad(X, problem.y, loss, **options)[0])
                places.append(place)
            quotient[index] = (values[0] - values[1]) / (places[0] - places[1])
            point[index] = start
        set_parameters(network, theta)
        return quotient

    return differentiate(theta), differentiate(X)


def library_gradient(problem: Problem, **options: Any) -> tuple[float, np.ndarray, np.ndarray]:
    value, gradient = problem.network.loss_and_grad(
        problem.X, problem.y, CASES[problem.case], **options
    )
    to_host = problem.network.backend.to_host
    return value, to_host(gradient.flat), to_host(gradient.inputs)


def assert_same(got: np.ndarray, expected: np.ndarray, tolerance: float, what: str) -> None:
    assert got.shape == expected.shape
    error, size = np.linalg.norm(got - expected), np.linalg.norm(expected)
    # No absolute allowance: where the gradient vanishes it does so exactly.
    assert error <= tolerance * size, f"{what}: relative error {error / (size or 1.0):.2e}"


def check_numerically(problem: Problem, what: str, **options: Any) -> None:
    _, by_parameters, by_inputs = library_gradient(problem, **options)
    expected_parameters, expected_inputs = numerical_gradient(problem, **options)
    assert_same(by_parameters, expected_parameters, 1e-6, f"{what}, parameters")
    assert_same(by_inputs, expected_inputs, 1e-6, f"{what}, inputs")


# One unit of softmax is refused: its output would always be 1.
COMBINATIONS = [
    (place, activation, case, kind)
    for place in PROBLEMS
    for activation in ALL_ACTIVATIONS
    for case, kind in LOSS_KINDS
    if (place, activation, kind) != ("output", "softmax", "one")
]


@pytest.mark.parametrize(
    ("place", "activation", "case", "kind"),
    [row for row in COMBINATIONS if row[2] not in AUTOGRAD_ONLY],
)
def test_central_differences(place, activation, case, kind):
    problem = PROBLEMS[place](activation, case, kind)
    for variant, options in VARIANTS.items():
        check_numerically(problem, variant, **options)
    _, by_parameters, by_inputs = library_gradient(problem)
    for gradient in (by_parameters, by_inputs):
        assert np.linalg.norm(gradient) > 1e-3, "nothing has been compared"


def test_the_tables_cover_every_loss():
    assert {type(loss) for loss in CASES.values()} == set(LOSSES.values())


# --- A selection on every backend -------------------------------------------------------------

EVERYTHING = {"sample_weight": [0.5, 0.0, 1.25], "alpha": 0.3, "l1": 0.2}
SELECTION = [
    # hidden, output, loss, kind, options
    ("relu", "identity", "squared_error", "several", {}),
    ("leaky_relu", "identity", "absolute_error", "several", VARIANTS["weighted"]),
    ("elu", "tanh", "huber", "several", VARIANTS["penalised"]),
    ("selu", "identity", "quantile", "one", VARIANTS["summed"]),
    ("softplus", "exp", "poisson", "several", EVERYTHING),
    ("mish", "softplus", "poisson", "one", {}),
    ("gelu", "sigmoid", "log_loss", "one", EVERYTHING),
    ("gelu_tanh", "softmax", "log_loss", "labels", EVERYTHING),
    ("silu", "softmax", "log_loss, smooth", "several", EVERYTHING | {"reduction": "sum"}),
    ("sigmoid", "softmax", "log_loss, binary", "labels", VARIANTS["weighted"]),
    ("tanh", "sigmoid", "log_loss, multiclass", "labels", VARIANTS["penalised"]),
    ("exp", "identity", "log_loss, smooth multiclass", "several", VARIANTS["summed"]),
    ("softmax", "relu", "log_loss, smooth binary", "labels", EVERYTHING),
    ("tanh", "sigmoid", "focal", "one", EVERYTHING),
    ("silu", "softmax", "focal", "several", VARIANTS["penalised"]),
    ("gelu", "softplus", "focal, multiclass", "labels", EVERYTHING | {"reduction": "sum"}),
    ("relu", "softmax", "focal, smooth binary", "several", VARIANTS["weighted"]),
]


@pytest.mark.parametrize(("hidden", "output", "case", "kind", "options"), SELECTION)
def test_central_differences_on_every_backend(backend, hidden, output, case, kind, options):
    layers = [Dense(4, hidden), Dense(1 if kind == "one" else 2, output)]
    problem = make_problem(layers, case, kind, n_features=3, backend=backend)
    check_numerically(problem, "", **options)


def test_the_selection_names_every_activation():
    assert {name for row in SELECTION for name in row[:2]} == set(ALL_ACTIVATIONS)


NETWORKS = {
    "one layer": [Dense(2, "softmax")],
    "no bias": [Dense(4, "tanh", bias=False), Dense(2, "softmax", bias=False)],
    "bias in one layer": [Dense(4, "tanh"), Dense(3, "silu", bias=False), Dense(2, "softmax")],
    "dropout": [Dense(4, "tanh"), Dropout(0.5), Dense(2, "softmax")],
    "input dropout": [Dropout(0.4), Dense(4, "tanh"), Dense(2, "softmax")],
    "dropout twice in a row": [
        Dropout(0.2), Dense(4, "mish"), Dropout(0.3), Dropout(0.4), Dense(2, "softmax"),
    ],
    "deep": [
        Dense(4, "tanh"), Dense(3, "softplus"), Dense(4, "sigmoid", bias=False), Dense(3, "mish"),
        Dense(3, "softmax"), Dense(4, "silu"), Dense(3, "identity"), Dense(2, "softmax"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_on_every_backend(backend, name):
    problem = make_problem(NETWORKS[name], "log_loss", "several", backend=backend)
    check_numerically(problem, name, step=3, **EVERYTHING)


@pytest.mark.parametrize("name", [name for name in NETWORKS if "dropout" in name])
def test_the_step_addresses_the_masks(backend, name):
    # Otherwise the difference quotients with dropout would say nothing.
    problem = make_problem(NETWORKS[name], "log_loss", "several", backend=backend)
    values = [library_gradient(problem, step=step)[0] for step in (3, 3, 4, 5, 6)]
    assert values[0] == values[1]
    assert len(set(values)) > 2


def test_derivatives_on_a_kink_are_those_of_the_formulas(backend):
    """relu'(0) = 0, and |.| and the pinball loss have a zero subgradient where they vanish."""
    X, y = np.array([[1.0, -1.0]]), np.array([[0.0, 0.0]])
    network = Network(2, [Dense(2, "relu", bias=False)], backend=backend)
    set_parameters(network, np.ones(4))  # z = 0
    _, gradient = network.loss_and_grad(X, y - 1.0, "squared_error")
    assert not backend.to_host(gradient.flat).any()
    network = Network(2, [Dense(2, bias=False)], backend=backend)
    set_parameters(network, np.ones(4))
    _, gradient = network.loss_and_grad(X, y, "absolute_error")
    assert not backend.to_host(gradient.flat).any()


# --- The second oracle ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch():
    module = pytest.importorskip("torch")
    # Waking threads for a few numbers takes longer than all these tests.
    threads = module.get_num_threads()
    module.set_num_threads(1)
    yield module
    module.set_num_threads(threads)


def torch_activation(torch: Any, name: str) -> Any:
    functional = torch.nn.functional
    return {
        "identity": lambda z: z,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "relu": functional.relu,
        "leaky_relu": lambda z: functional.leaky_relu(z, 0.01),
        "elu": functional.elu,
        "selu": functional.selu,
        "gelu": functional.gelu,
        "gelu_tanh": lambda z: functional.gelu(z, approximate="tanh"),
        "silu": functional.silu,
        "softplus": functional.softplus,
        "mish": functional.mish,
        "exp": torch.exp,
        "softmax": lambda z: functional.softmax(z, dim=1),
    }[name]


def torch_losses(torch: Any, case: str, softmax_output: bool, a: Any, y: Any) -> Any:
    """The loss of each sample, shape (n,), from its formula; y is (n, k)."""
    r = a - y
    eps = np.finfo(np.float64).eps
    if case == "squared_error":
        elements = r**2 / 2
    elif case == "absolute_error":
        elements = torch.abs(r)
    elif case == "huber":
        linear = DELTA * (torch.abs(r) - DELTA / 2)
        elements = torch.where(torch.abs(r) <= DELTA, r**2 / 2, linear)
    elif case == "quantile":
        elements = torch.where(r < 0, -QUANTILE * r, (1 - QUANTILE) * r)
    elif case == "poisson":
        rate = torch.clamp(a, min=eps)
        elements = rate - y + torch.xlogy(y, y) - torch.xlogy(y, rate)
    else:
        multiclass = "multiclass" in case or ("binary" not in case and softmax_output)
        if "smooth" in case:
            y = (1 - SMOOTHING) * y + SMOOTHING / (a.shape[1] if multiclass else 2)
        gamma = GAMMA if "focal" in case else 0.0
        if multiclass:
            p = torch.clamp(a, eps, 1)
            elements = -y * torch.clamp(1 - p, min=eps) ** gamma * torch.log(p)
        else:
            p = torch.clamp(a, eps, 1 - eps)
            elements = -y * (1 - p) ** gamma * torch.log(p)
            elements = elements - (1 - y) * p**gamma * torch.log(1 - p)
    return elements.sum(dim=1)


def torch_gradient(
    torch: Any,
    problem: Problem,
    sample_weight: Any = None,
    alpha: float = 0.0,
    l1: float = 0.0,
    reduction: str = "mean",
) -> tuple[float, np.ndarray, np.ndarray]:
    """Objective and gradients by autograd, in the order of ``Network.parameters``."""
    network = problem.network

    def leaf(values: Any) -> Any:
        return torch.tensor(np.array(values), dtype=torch.float64, requires_grad=True)

    X = leaf(problem.X)
    weights = [leaf(w) for w in network.weights]
    biases = [None if b is None else leaf(b) for b in network.biases]
    a = X
    for layer, w, b in zip(network.layers, weights, biases, strict=True):
        z = a @ w if b is None else a @ w + b
        a = torch_activation(torch, layer.activation.name)(z)
    y = torch.tensor(problem.y)
    if y.ndim == 1:
        labels = not torch.is_floating_point(y)
        y = torch.nn.functional.one_hot(y, a.shape[1]) if labels else y[:, None]
    softmax_output = network.output_activation.name == "softmax"
    losses = torch_losses(torch, problem.case, softmax_output, a, y.to(torch.float64))
    share = torch.ones_like(losses) if sample_weight is None else torch.tensor(sample_weight)
    value = (share * losses).sum()
    if reduction == "mean":
        value = value / share.sum()
    for w in weights:
        value = value + alpha / 2 * (w**2).sum() + l1 * torch.abs(w).sum()
    leaves = [X, *weights, *(b for b in biases if b is not None)]
    by_inputs, *by_parameters = torch.autograd.grad(value, leaves)
    flat = torch.cat([part.reshape(-1) for part in by_parameters])
    return value.item(), flat.numpy(), by_inputs.numpy()


def check_against_autograd(torch: Any, problem: Problem, what: str, **options: Any) -> None:
    value, by_parameters, by_inputs = library_gradient(problem, **options)
    expected_value, expected_parameters, expected_inputs = torch_gradient(torch, problem, **options)
    assert value == pytest.approx(expected_value, rel=1e-12, abs=1e-14), what
    assert_same(by_parameters, expected_parameters, 1e-10, f"{what}, parameters")
    assert_same(by_inputs, expected_inputs, 1e-10, f"{what}, inputs")


@pytest.mark.parametrize(("place", "activation", "case", "kind"), COMBINATIONS)
def test_autograd(torch, place, activation, case, kind):
    problem = PROBLEMS[place](activation, case, kind)
    for variant, options in VARIANTS.items():
        check_against_autograd(torch, problem, variant, **options)
    check_against_autograd(torch, problem, "all at once", **EVERYTHING, reduction="sum")


@pytest.mark.parametrize("name", [name for name in NETWORKS if "dropout" not in name])
def test_autograd_of_networks(torch, name):
    problem = make_problem(NETWORKS[name], "log_loss", "labels")
    check_against_autograd(torch, problem, name, **EVERYTHING)
