"""Mistakes that texts and programs about backpropagation make, and that the library does not.

Wherever a mistake has a formula it is written out beside the right one, and the data are such
that the two differ: a test that could not fail would prove nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from xpmlp import Callback, Dense, Dropout, Network, fit
from xpmlp.losses import LogLoss
from xpmlp.optimizers import OPTIMIZERS, SGD, AdaGrad, Adam, AdaMax

# --- A layer that shows its error term --------------------------------------------------------


def set_parameters(network: Network, theta: Any) -> None:
    network.backend.copy(network.backend.from_host(np.array(theta)), network.parameters)


def parameters_of(network: Network) -> np.ndarray:
    return np.array(network.backend.to_host(network.parameters))


def probe(backend: Any, activation: str, k: int, dtype: str = "float64") -> Network:
    """One layer with Z = X, so that the gradient of X is the error term D = dJ/dZ."""
    network = Network(k, [Dense(k, activation, bias=False)], backend=backend, dtype=dtype)
    set_parameters(network, np.eye(k, dtype=dtype).ravel())
    return network


def error_term(network: Network, Z: np.ndarray, y: Any, loss: Any, **options: Any) -> np.ndarray:
    _, gradient = network.loss_and_grad(Z, y, loss, **options)
    return np.array(network.backend.to_host(gradient.inputs))


def close(expected: Any) -> Any:
    return pytest.approx(np.asarray(expected), rel=1e-11, abs=1e-13)


def assert_right(got: Any, right: Any, *mistakes: Any) -> None:
    """`got` is `right`, and each mistake is something else, clearly."""
    assert np.asarray(got) == close(right)
    for mistake in mistakes:
        assert np.abs(np.asarray(mistake) - np.asarray(right)).max() > 1e-4


Z = np.array([[0.5, -1.0, 2.0], [3.0, 0.25, -2.0], [-0.5, 1.5, 0.75], [0.1, -0.3, 0.6]])
PROBABILITIES = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])


def sigmoid(z: Any) -> Any:
    return 1 / (1 + np.exp(-z))


def softmax(z: np.ndarray) -> np.ndarray:
    return np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)


# --- dC/da = y - a, instead of a - y ----------------------------------------------------------


@pytest.mark.parametrize(
    ("activation", "loss", "g"),
    [
        ("identity", "squared_error", lambda z: z),
        ("sigmoid", "log_loss", sigmoid),
        ("softmax", "log_loss", softmax),
        ("exp", "poisson", np.exp),
    ],
)
def test_the_error_is_prediction_minus_target(backend, activation, loss, g):
    """Where output and loss suit each other, D = (a - y) / n."""
    got = error_term(probe(backend, activation, 3), Z, PROBABILITIES, loss)
    right = (g(Z) - PROBABILITIES) / len(Z)
    assert_right(got, right, -right)


def test_a_step_along_the_negative_gradient_is_downhill(backend):
    network = Network(3, [Dense(4, "sigmoid"), Dense(3, "sigmoid")], backend=backend)
    before, gradient = network.loss_and_grad(Z, PROBABILITIES, "squared_error")
    to_host = backend.to_host
    set_parameters(network, parameters_of(network) - 0.1 * to_host(gradient.flat))
    assert network.loss_and_grad(Z, PROBABILITIES, "squared_error")[0] < before


# --- The derivative of sigmoid, a (1 - a), taken of the pre-activation ------------------------

# g'(z), and the formula that is meant for a = g(z) taken of z
OF_THE_ACTIVATION = {
    "sigmoid": (sigmoid, lambda a: a * (1 - a)),
    "tanh": (np.tanh, lambda a: 1 - a**2),
    "exp": (np.exp, lambda a: a),
    "softplus": (lambda z: np.log1p(np.exp(z)), lambda a: 1 - np.exp(-a)),
}


@pytest.mark.parametrize("place", ["output", "hidden"])
@pytest.mark.parametrize("activation", OF_THE_ACTIVATION)
def test_derivatives_are_taken_of_the_activation(backend, activation, place):
    g, derivative = OF_THE_ACTIVATION[activation]
    network = probe(backend, activation, 3)
    if place == "hidden":
        layers = [Dense(3, activation, bias=False), Dense(3, bias=False)]
        network = Network(3, layers, backend=backend)
        set_parameters(network, [*np.eye(3).ravel(), *np.eye(3).ravel()])
    got = error_term(network, Z, PROBABILITIES, "squared_error")
    outer = (g(Z) - PROBABILITIES) / len(Z)
    assert_right(got, outer * derivative(g(Z)), outer * derivative(Z))


# --- The derivative of the absolute error, |a - y| or a - y instead of sign(a - y) / n --------


def test_the_absolute_error_has_the_derivative_sign(backend):
    y = Z + np.array([[1.0, -2.0, 0.5], [-0.25, 3.0, -1.0], [0.1, 0.2, -0.3], [0.0, -4.0, 2.0]])
    network = probe(backend, "identity", 3)
    r = Z - y
    signs = [[-1, 1, -1], [1, -1, 1], [-1, -1, 1], [0, 1, -1]]
    right = np.array(signs) / 4
    assert_right(
        error_term(network, Z, y, "absolute_error"), right, np.abs(r) / 4, r / 4, np.abs(r), signs
    )
    assert_right(error_term(network, Z, y, "absolute_error", reduction="sum"), signs, r, right)
    value, _ = network.loss_and_grad(Z, y, "absolute_error")
    assert value == pytest.approx(np.abs(r).sum() / 4, rel=1e-12)


# --- A small network by hand, for what goes wrong in training ---------------------------------

# 2-3-1, sigmoid and identity, half the squared error. Parameters in the library's order: W1 (2, 3),
# W2 (3, 1), b1 (3,), b2 (1,).
THETA = [0.5, -0.75, 0.25, 1.0, 0.5, -1.25, 1.5, -1.0, 0.75, 0.1, -0.2, 0.3, 0.4]
ROWS = [[0.2, 1.0], [-1.5, 0.5], [0.7, -0.9], [1.2, 2.0], [-0.4, -1.1]]
TARGETS = [1.0, -2.0, 0.5, 3.0, -1.0]

Step = Callable[[list[float], list[float], dict[str, list[float]], int], list[float]]


def small_network(backend: Any) -> Network:
    network = Network(2, [Dense(3, "sigmoid"), Dense(1)], backend=backend)
    set_parameters(network, THETA)
    return network


def gradient_by_hand(
    theta: list[float], rows: list, targets: list, behind: list[float]
) -> list[float]:
    """Gradient of the mean over `rows`; error terms pass back through the weights of `behind`."""
    g = [0.0] * len(theta)
    for (x1, x2), y in zip(rows, targets, strict=True):
        a = [1 / (1 + math.exp(-(theta[j] * x1 + theta[3 + j] * x2 + theta[9 + j])))
             for j in range(3)]  # fmt: skip
        d = (sum(theta[6 + j] * a[j] for j in range(3)) + theta[12] - y) / len(rows)
        for j in range(3):
            d_j = d * behind[6 + j] * a[j] * (1 - a[j])
            g[j] += d_j * x1
            g[3 + j] += d_j * x2
            g[6 + j] += d * a[j]
            g[9 + j] += d_j
        g[12] += d
    return g


def train_by_hand(
    step: Step,
    epochs: int,
    batch_size: int,
    *,
    weights: str = "current",
    restart: tuple[str, ...] = (),
) -> list[float]:
    """Training without shuffling; the keywords are the mistakes.

    `weights`: "initial" and "updated" take the error terms from other than the current weights.
    `restart`: "state" and "t" start again every epoch.
    """
    theta, memory, t = list(THETA), {}, 0
    for _ in range(epochs):
        memory = {} if "state" in restart else memory
        t = 0 if "t" in restart else t
        for start in range(0, len(ROWS), batch_size):
            part = slice(start, start + batch_size)
            t += 1
            behind = {"current": theta, "initial": THETA}.get(weights)
            if behind is None:
                behind = step(
                    theta, gradient_by_hand(theta, ROWS[part], TARGETS[part], theta), {}, 1
                )
            g = gradient_by_hand(theta, ROWS[part], TARGETS[part], behind)
            theta = step(theta, g, memory, t)
    return theta


def train(
    backend: Any, optimizer: Any, epochs: int, batch_size: int | None, **options: Any
) -> np.ndarray:
    """The same training by the library."""
    network = small_network(backend)
    fit(
        network, ROWS, TARGETS, loss="squared_error", optimizer=optimizer, epochs=epochs,
        batch_size=batch_size, shuffle=False, verbose=0, **options,
    )  # fmt: skip
    return parameters_of(network)


def slot(memory: dict[str, list[float]], name: str, size: int) -> list[float]:
    return memory.setdefault(name, [0.0] * size)


def sgd(theta: list, g: list, memory: dict, t: int) -> list[float]:
    return [p - 0.2 * g_i for p, g_i in zip(theta, g, strict=True)]


def momentum(theta: list, g: list, memory: dict, t: int) -> list[float]:
    v = slot(memory, "v", len(g))
    v[:] = [0.9 * v_i + g_i for v_i, g_i in zip(v, g, strict=True)]
    return [p - 0.1 * v_i for p, v_i in zip(theta, v, strict=True)]


def adagrad(theta: list, g: list, memory: dict, t: int) -> list[float]:
    s = slot(memory, "s", len(g))
    s[:] = [s_i + g_i**2 for s_i, g_i in zip(s, g, strict=True)]
    return [
        p - 0.1 * g_i / (math.sqrt(s_i) + 1e-10) for p, g_i, s_i in zip(theta, g, s, strict=True)
    ]


def adam(theta: list, g: list, memory: dict, t: int) -> list[float]:
    m, v = slot(memory, "m", len(g)), slot(memory, "v", len(g))
    m[:] = [0.9 * m_i + 0.1 * g_i for m_i, g_i in zip(m, g, strict=True)]
    v[:] = [0.99 * v_i + 0.01 * g_i**2 for v_i, g_i in zip(v, g, strict=True)]
    return [
        p - 0.05 * (m_i / (1 - 0.9**t)) / (math.sqrt(v_i / (1 - 0.99**t)) + 1e-8)
        for p, m_i, v_i in zip(theta, m, v, strict=True)
    ]


def adamax(
    theta: list,
    g: list,
    memory: dict,
    t: int,
    norm: str = "element",
    correction: float = 0.9,
) -> list[float]:
    """AdaMax; the keywords are the mistakes: a norm of all elements, its root, beta_2^t."""
    m, u = slot(memory, "m", len(g)), slot(memory, "u", len(g))
    m[:] = [0.9 * m_i + 0.1 * g_i for m_i, g_i in zip(m, g, strict=True)]
    whole = math.sqrt(sum(g_i**2 for g_i in g))
    for i, g_i in enumerate(g):
        size = {"element": abs(g_i), "matrix": whole, "root": math.sqrt(whole)}[norm]
        u[i] = max(0.99 * u[i], size)
    return [
        p - 0.05 / (1 - correction**t) * m_i / u_i for p, m_i, u_i in zip(theta, m, u, strict=True)
    ]


# --- AdaMax with the norm of the matrix, its root, or beta_2 in the correction ----------------

ADAMAX = AdaMax(learning_rate=0.05, beta_2=0.99, epsilon=0.0)
ADAMAX_MISTAKES = [{"norm": "matrix"}, {"norm": "root"}, {"correction": 0.99}]


def test_adamax_is_element_by_element(backend):
    gradients = [[0.5, -0.01, 3.0, 0.2], [0.1, -0.2, -1.0, 0.3], [-2.0, 0.05, 0.5, 1e-3]]
    start = [1.0, -1.0, 0.5, 2.0]
    theta = backend.from_host(np.array(start))
    state = ADAMAX.init(theta, backend=backend)
    for g in gradients:
        ADAMAX.update(theta, backend.from_host(np.array(g)), state)

    def by_hand(**mistake: Any) -> list[float]:
        point, memory = start, {}
        for t, g in enumerate(gradients, 1):
            point = adamax(point, g, memory, t, **mistake)
        return point

    assert_right(backend.to_host(theta), by_hand(), *(by_hand(**m) for m in ADAMAX_MISTAKES))


def test_adamax_couples_no_elements(backend):
    """Another gradient of one element leaves the others alone; a norm would not."""
    moved = []
    for last in (0.1, 100.0):
        theta = backend.from_host(np.ones(3))
        state = ADAMAX.init(theta, backend=backend)
        ADAMAX.update(theta, backend.from_host(np.array([0.5, -0.5, last])), state)
        moved.append(backend.to_host(theta))
    assert moved[0] == close([0.95, 1.05, 0.95])  # the first step is the learning rate
    assert moved[1] == close(moved[0])


def test_adamax_in_training(backend):
    def by_hand(**mistake: Any) -> list[float]:
        return train_by_hand(lambda *a: adamax(*a, **mistake), 3, 2)

    got = train(backend, ADAMAX, 3, 2)
    assert_right(got, by_hand(), *(by_hand(**m) for m in ADAMAX_MISTAKES))


# --- Error terms from the initial weights, or from those after the update ---------------------


@pytest.mark.parametrize(("epochs", "batch_size"), [(2, 5), (1, 3), (4, 2)])
def test_error_terms_use_the_current_weights(backend, epochs, batch_size):
    assert_right(
        train(backend, SGD(learning_rate=0.2), epochs, batch_size),
        train_by_hand(sgd, epochs, batch_size),
        train_by_hand(sgd, epochs, batch_size, weights="initial"),
        train_by_hand(sgd, epochs, batch_size, weights="updated"),
    )


def test_the_first_step_comes_from_the_weights_before_it(backend):
    assert_right(
        train(backend, SGD(learning_rate=0.2), 1, None),
        train_by_hand(sgd, 1, len(ROWS)),
        train_by_hand(sgd, 1, len(ROWS), weights="updated"),
    )


# --- A dropout mask in the forward pass alone -------------------------------------------------


def test_backward_has_the_mask_of_forward(backend):
    """D before a dropout of rate 1/2 is 2 mask D behind it."""
    k, n = 6, 4
    network = Network(k, [Dropout(0.5), Dense(k, bias=False)], backend=backend, seed=3)
    set_parameters(network, np.eye(k).ravel())
    ones, y = np.ones((n, k)), np.full((n, k), 0.5)
    masks = []
    for step in range(3):
        a = np.array(network.forward(ones, step=step))
        mask = a != 0
        assert (a == 2.0 * mask).all()
        assert 0 < mask.sum() < n * k
        masks.append(mask)
        behind = (a - y) / n
        got = error_term(network, ones, y, "squared_error", step=step)
        assert_right(got, 2 * mask * behind, behind, 2 * behind, mask * behind)
    assert (masks[0] != masks[1]).any()
    assert (masks[1] != masks[2]).any()
    assert (network.predict(ones) == ones).all()


class Changes(Callback):
    """The change of all parameters in each step."""

    def on_start(self, run: Any) -> None:
        self.newest, self.steps = parameters_of(run.network), []

    def on_batch(self, run: Any) -> None:
        before, self.newest = self.newest, parameters_of(run.network)
        self.steps.append(self.newest - before)


def test_a_dropped_neuron_learns_nothing_in_that_step(backend):
    """Its outgoing weight sees no activation, and its incoming weights no error."""
    hidden, epochs = 8, 3
    layers = [Dense(hidden, "sigmoid"), Dropout(0.5), Dense(1)]
    network = Network(2, layers, backend=backend, seed=1)
    changes = Changes()
    fit(
        network, ROWS, TARGETS, loss="squared_error", optimizer=SGD(learning_rate=0.1),
        epochs=epochs, batch_size=1, callbacks=[changes], verbose=0,
    )  # fmt: skip
    assert len(changes.steps) == epochs * len(ROWS)
    patterns = set()
    for change in changes.steps:
        # W1 (2, hidden), W2 (hidden, 1) and b1 (hidden,) as rows, a column a neuron
        by_neuron = change[: 4 * hidden].reshape(4, hidden)
        learnt = by_neuron[2] != 0
        assert ((by_neuron != 0) == learnt).all()
        patterns.add(tuple(learnt.tolist()))
    # A mask for every step of every epoch.
    assert len(patterns) > epochs * len(ROWS) // 2


# --- Optimizer state and t that restart every epoch -------------------------------------------

WITH_STATE = {
    "momentum": (SGD(learning_rate=0.1, momentum=0.9), momentum, [("state",)]),
    "adagrad": (AdaGrad(learning_rate=0.1), adagrad, [("state",)]),
    "adam": (Adam(learning_rate=0.05, beta_2=0.99), adam, [("state",), ("t",), ("state", "t")]),
    "adamax": (ADAMAX, adamax, [("state",), ("t",), ("state", "t")]),
}


@pytest.mark.parametrize("batch_size", [2, 5])
@pytest.mark.parametrize("name", WITH_STATE)
def test_optimizer_state_lives_as_long_as_the_fit(backend, name, batch_size):
    optimizer, step, restarts = WITH_STATE[name]
    assert_right(
        train(backend, optimizer, 3, batch_size),
        train_by_hand(step, 3, batch_size),
        *(train_by_hand(step, 3, batch_size, restart=restart) for restart in restarts),
    )


def test_every_fit_begins_with_fresh_state(backend):
    optimizer, step, _ = WITH_STATE["adam"]
    network = small_network(backend)
    for _ in range(3):
        fit(
            network, ROWS, TARGETS, loss="squared_error", optimizer=optimizer, epochs=1,
            batch_size=2, shuffle=False, verbose=0,
        )  # fmt: skip
    restarted = train_by_hand(step, 3, 2, restart=("state", "t"))
    assert_right(parameters_of(network), restarted, train_by_hand(step, 3, 2))


def test_schedules_see_a_step_count_that_runs_on(backend):
    seen = []

    def schedule(step: int) -> float:
        seen.append(step)
        return 0.01

    train(backend, Adam(learning_rate=schedule), 3, 2)
    assert seen == list(range(9))


# --- Batch sizes that never train, or permute the features ------------------------------------


@pytest.mark.parametrize("batch_size", [None, 1, 2, 5, 100])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_trains_at_every_batch_size(backend, name, batch_size):
    network = small_network(backend)
    before = parameters_of(network)
    history = fit(
        network, ROWS, TARGETS, loss="squared_error", optimizer=name, epochs=10,
        batch_size=batch_size, verbose=0,
    )  # fmt: skip
    assert (parameters_of(network) != before).all()
    assert history["loss"][-1] < history["loss"][0]


@pytest.mark.parametrize("batch_size", [None, 1, 2, 5])
def test_only_the_batch_size_tells_the_kinds_of_gradient_descent_apart(backend, batch_size):
    # Rows with two different features, and weights that tell them apart.
    permuted = [row[::-1] for row in ROWS]
    with_permuted_features = list(THETA)
    for row, target in zip(permuted, TARGETS, strict=True):
        g = gradient_by_hand(with_permuted_features, [row], [target], with_permuted_features)
        with_permuted_features = sgd(with_permuted_features, g, {}, 1)
    assert_right(
        train(backend, SGD(learning_rate=0.2), 1, batch_size),
        train_by_hand(sgd, 1, batch_size or len(ROWS)),
        THETA,
        with_permuted_features,
    )


def test_batches_of_one_keep_features_in_their_columns(backend):
    """The weights of a feature that is always 0 have no gradient."""
    network = small_network(backend)
    rows = [[x1, 0.0] for x1, _ in ROWS]
    fit(
        network, rows, TARGETS, loss="squared_error", optimizer=SGD(learning_rate=0.1), epochs=5,
        batch_size=1, verbose=0,
    )  # fmt: skip
    after = parameters_of(network)
    assert (after[3:6] == THETA[3:6]).all()
    assert (after[:3] != THETA[:3]).all()


# --- Softmax that overflows -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_softmax_and_cross_entropy_of_huge_logits(backend, dtype):
    Z = np.array(
        [[1000.0, 0.0, -1000.0], [-9000.0, -9000.0, -9000.0], [1e30, 1e30, 0.0]], dtype=dtype
    )
    p = np.array([[1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0.0]])
    labels = [1, 0, 0]  # the first has the probability exp(-1000)
    one_hot = np.eye(3)[labels]
    network = probe(backend, "softmax", 3, dtype)
    tolerance = {"rel": 1e-6 if dtype == "float32" else 1e-12, "abs": 0.0}

    assert network.predict(Z) == pytest.approx(p, **tolerance)
    value, gradient = network.loss_and_grad(Z, labels, "log_loss")
    assert value == pytest.approx((1000.0 + math.log(3) + math.log(2)) / 3, **tolerance)
    assert backend.to_host(gradient.inputs) == pytest.approx((p - one_hot) / 3, **tolerance)


@pytest.mark.parametrize("loss", ["squared_error", LogLoss(multiclass=False)])
def test_softmax_of_huge_logits_before_another_loss(backend, loss):
    Z = np.array([[1000.0, 0.0], [-1000.0, -1000.0]])
    network = probe(backend, "softmax", 2)
    value, gradient = network.loss_and_grad(Z, [[1.0, 0.0], [0.0, 1.0]], loss)
    assert math.isfinite(value)
    D = backend.to_host(gradient.inputs)
    assert np.isfinite(D).all()
    assert (D[1] * [1, -1] > 0).all()  # towards the second output


def test_sigmoid_and_cross_entropy_of_huge_logits(backend):
    network = probe(backend, "sigmoid", 2)
    Z, y = np.array([[1000.0, -1000.0], [-1000.0, 1000.0]]), [[1.0, 0.0], [1.0, 0.0]]
    value, gradient = network.loss_and_grad(Z, y, "log_loss")
    assert value == pytest.approx(1000.0, rel=1e-12)
    assert backend.to_host(gradient.inputs) == close([[0.0, 0.0], [-0.5, 0.5]])


def test_training_from_huge_logits(backend):
    X, labels = np.array([[3000.0, 0.0], [0.0, 3000.0]]), [1, 0]
    network = probe(backend, "softmax", 2)
    history = fit(
        network, X, labels, loss="log_loss", optimizer=SGD(learning_rate=1e-3), epochs=5,
        batch_size=None, verbose=0,
    )  # fmt: skip
    assert history["loss"][0] == pytest.approx(3000.0, rel=1e-12)
    assert history["loss"][-1] == pytest.approx(0.0, abs=1e-12)


# --- Batches with replacement, and a last batch that is left out ------------------------------

N_SAMPLES = 10


class VisitedRows(Callback):
    """Which rows each batch holds, one list of sets an epoch.

    Sample i is told by its loss, 2**i: the sum over a batch has the binary digits of its rows. A
    row that came twice would carry into the next digit.
    """

    def on_start(self, run: Any) -> None:
        self.epochs: list[list[set[int]]] = []

    def on_batch(self, run: Any) -> None:
        if run.batch == 0:
            self.epochs.append([])
        total = round(run.batch_loss * run.batch_rows)
        rows = {i for i in range(N_SAMPLES) if total >> i & 1}
        assert total < 2**N_SAMPLES
        assert len(rows) == run.batch_rows
        self.epochs[-1].append(rows)


def identifiable(backend: Any, weights: Any) -> tuple[Network, np.ndarray, np.ndarray]:
    """A network whose weight i is the absolute error of sample i."""
    network = Network(N_SAMPLES, [Dense(1, bias=False)], backend=backend)
    set_parameters(network, weights)
    return network, np.eye(N_SAMPLES), np.zeros(N_SAMPLES)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 5, 10, 64, None])
def test_an_epoch_visits_each_sample_once(backend, batch_size, shuffle):
    network, X, y = identifiable(backend, 2.0 ** np.arange(N_SAMPLES))
    visited = VisitedRows()
    fit(
        network, X, y, loss="absolute_error", optimizer=SGD(learning_rate=0.0), epochs=4,
        batch_size=batch_size, callbacks=[visited], shuffle=shuffle, verbose=0,
    )  # fmt: skip
    size = min(batch_size or N_SAMPLES, N_SAMPLES)
    full, rest = divmod(N_SAMPLES, size)
    sizes = [size] * full + [rest] * (rest > 0)
    in_order = [set(range(start, min(start + size, N_SAMPLES)))
                for start in range(0, N_SAMPLES, size)]  # fmt: skip
    assert len(visited.epochs) == 4
    for batches in visited.epochs:
        assert [len(rows) for rows in batches] == sizes
        assert set.union(*batches) == set(range(N_SAMPLES))
        assert shuffle or batches == in_order
    if shuffle and len(sizes) > 1:
        orders = {tuple(map(frozenset, batches)) for batches in visited.epochs}
        assert len(orders) == 4  # a new permutation every epoch


@pytest.mark.parametrize(("batch_size", "rest"), [(4, 2), (3, 1), (7, 3)])
def test_every_sample_counts_in_the_update_of_its_batch(backend, batch_size, rest):
    """The last batch is smaller, and its mean is over the rows it has."""
    network, X, y = identifiable(backend, np.full(N_SAMPLES, 100.0))
    fit(
        network, X, y, loss="absolute_error", optimizer=SGD(learning_rate=1.0), epochs=1,
        batch_size=batch_size, verbose=0,
    )  # fmt: skip
    moved = sorted(100.0 - parameters_of(network))
    assert moved == close([1 / batch_size] * (N_SAMPLES - rest) + [1 / rest] * rest)


# --- A training function that does not run, and prints another cost than it differentiates ----

XOR, XOR_TARGETS = [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], [0.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_the_reported_loss_is_what_is_differentiated(backend, alpha):
    def run(theta: np.ndarray, learning_rate: float) -> tuple[float, np.ndarray]:
        network = small_network(backend)
        set_parameters(network, theta)
        history = fit(
            network, XOR, XOR_TARGETS, loss="squared_error", alpha=alpha, epochs=1,
            optimizer=SGD(learning_rate=learning_rate), batch_size=None, verbose=0,
        )  # fmt: skip
        return history["loss"][0], parameters_of(network)

    start = np.array(THETA)
    reported, after = run(start, 0.1)
    h = 1e-5
    slopes = [
        (run(start + h * unit, 0.0)[0] - run(start - h * unit, 0.0)[0]) / (2 * h)
        for unit in np.eye(len(THETA))
    ]
    assert (start - after) / 0.1 == pytest.approx(np.array(slopes), rel=1e-6, abs=1e-8)

    network = small_network(backend)
    residuals = network.predict(np.array(XOR))[:, 0] - XOR_TARGETS
    mean_square, penalty = np.mean(residuals**2), alpha / 2 * np.sum(start[:9] ** 2)
    assert_right(reported, mean_square / 2 + penalty, mean_square + penalty)
    value, _ = network.loss_and_grad(XOR, XOR_TARGETS, "squared_error", alpha)
    assert reported == pytest.approx(value, rel=1e-12)


def test_the_reported_loss_of_an_epoch_is_the_mean_over_samples(backend):
    """With unequal batches too: 2, 2 and 1 rows."""
    network = small_network(backend)
    value, _ = network.loss_and_grad(ROWS, TARGETS, "squared_error")
    history = fit(
        network, ROWS, TARGETS, loss="squared_error", optimizer=SGD(learning_rate=0.0), epochs=1,
        batch_size=2, verbose=0,
    )  # fmt: skip
    assert history["loss"] == [pytest.approx(value, rel=1e-12)]


def test_xor_trains_in_place(backend):
    network = small_network(backend)
    first_layer = network.weights[0]
    history = fit(
        network, XOR, XOR_TARGETS, loss="squared_error", optimizer=Adam(learning_rate=0.1),
        epochs=300, batch_size=None, verbose=0,
    )  # fmt: skip
    assert history["loss"][-1] < 1e-3 < history["loss"][0]
    assert ((network.predict(np.array(XOR))[:, 0] > 0.5) == [False, True, True, False]).all()
    trained = np.array(backend.to_host(first_layer)).ravel()
    assert (trained == parameters_of(network)[:6]).all()
    assert (trained != THETA[:6]).all()
