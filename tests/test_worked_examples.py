"""Worked examples: partial derivatives written out by hand, one number at a time, on one side and
the library on the other.

The left side uses Python floats and loops alone. Where it writes `w[j][k]` or `W[i][j]`, a weight
leads from the second to the first neuron in the former and from the first to the second in the
latter, as in the library.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from optional import optional

from xpmlp import Callback, Dense, Dropout, Network, fit
from xpmlp.activations import ACTIVATIONS
from xpmlp.optimizers import SGD, Adam

datasets, selection = optional("sklearn.datasets"), optional("sklearn.model_selection")
preprocessing = optional("sklearn.preprocessing")

LEARNING_RATE = 0.1


# --- Helpers ----------------------------------------------------------------------------------


def numbers(seed: int, *shape: int) -> Any:
    """Nested lists of numbers from -1 to 1, none of them near 0."""
    draw = np.random.default_rng(seed)
    return (draw.uniform(0.1, 1.0, shape) * draw.choice([-1.0, 1.0], shape)).tolist()


def build(backend: Any, weights: list, biases: list, activations: list[str]) -> Network:
    """A network of given weights (from neuron, to neuron) and biases, None for a layer without."""
    layers = [
        Dense(len(w[0]), g, bias=b is not None)
        for w, b, g in zip(weights, biases, activations, strict=True)
    ]
    network = Network(len(weights[0]), layers, backend=backend)
    flat = flatten(weights, biases)
    assert network.n_parameters == len(flat)
    backend.copy(backend.from_host(np.array(flat)), network.parameters)
    return network


def flatten(weights: list, biases: list) -> list[float]:
    """The order of ``Network.parameters``: all weights, then all biases."""
    from_weights = [value for w in weights for row in w for value in row]
    return from_weights + [value for b in biases if b is not None for value in b]


def close(expected: Any) -> Any:
    return pytest.approx(np.array(expected), rel=1e-11, abs=1e-14)


def check(
    network: Network,
    X: list,
    y: list,
    loss: str,
    value: float,
    weights: list,
    biases: list,
    inputs: list,
    alpha: float = 0.0,
) -> None:
    """Objective, gradients with their shapes, and one step of gradient descent both ways."""
    backend = network.backend
    to_host, parameters = backend.to_host, network.parameters
    got, gradient = network.loss_and_grad(X, y, loss, alpha)
    assert got == pytest.approx(value, rel=1e-12)
    for pairs in (
        zip(gradient.weights, weights, network.weights, strict=True),
        zip(gradient.biases, biases, network.biases, strict=True),
    ):
        for part, expected, parameter in pairs:
            if expected is None:
                assert part is None
                assert parameter is None
                continue
            assert part.shape == parameter.shape == np.shape(expected)
            assert to_host(part) == close(expected)
    assert gradient.inputs.shape == np.shape(X)
    assert to_host(gradient.inputs) == close(inputs)
    assert to_host(gradient.flat) == close(flatten(weights, biases))

    before = np.array(to_host(parameters))
    after = before - LEARNING_RATE * np.array(flatten(weights, biases))
    optimizer = SGD(learning_rate=LEARNING_RATE)
    optimizer.update(parameters, gradient.flat, optimizer.init(parameters))
    assert to_host(parameters) == close(after)

    backend.copy(backend.from_host(before), parameters)
    history = fit(
        network, X, y, loss=loss, optimizer=optimizer, epochs=1, batch_size=None, alpha=alpha,
        verbose=0,
    )  # fmt: skip
    assert history["loss"] == [pytest.approx(value, rel=1e-12)]
    assert to_host(parameters) == close(after)
    assert network.loss_and_grad(X, y, loss, alpha)[0] < value  # downhill


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


# --- 1. 2-3-2-1 with any hidden activation ----------------------------------------------------


def gelu_tanh(z: float) -> tuple[float, float]:
    c = math.sqrt(2 / math.pi)
    t = math.tanh(c * (z + 0.044715 * z**3))
    return z * (1 + t) / 2, (1 + t) / 2 + z / 2 * (1 - t**2) * c * (1 + 3 * 0.044715 * z**2)


def mish(z: float) -> tuple[float, float]:
    t = math.tanh(math.log(1 + math.exp(z)))
    return z * t, t + z * (1 - t**2) * sigmoid(z)


SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772

# g(z) and g'(z)
HIDDEN = {
    "identity": lambda z: (z, 1.0),
    "sigmoid": lambda z: (sigmoid(z), sigmoid(z) * (1 - sigmoid(z))),
    "tanh": lambda z: (math.tanh(z), 1 - math.tanh(z) ** 2),
    "relu": lambda z: (z, 1.0) if z > 0 else (0.0, 0.0),
    "leaky_relu": lambda z: (z, 1.0) if z > 0 else (0.01 * z, 0.01),
    "elu": lambda z: (z, 1.0) if z > 0 else (math.exp(z) - 1, math.exp(z)),
    "selu": lambda z: (
        (SELU_SCALE * z, SELU_SCALE)
        if z > 0
        else (SELU_SCALE * SELU_ALPHA * (math.exp(z) - 1), SELU_SCALE * SELU_ALPHA * math.exp(z))
    ),
    "gelu": lambda z: (
        z * (1 + math.erf(z / math.sqrt(2))) / 2,
        (1 + math.erf(z / math.sqrt(2))) / 2 + z * math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi),
    ),
    "gelu_tanh": gelu_tanh,
    "silu": lambda z: (z * sigmoid(z), sigmoid(z) * (1 + z * (1 - sigmoid(z)))),
    "softplus": lambda z: (math.log(1 + math.exp(z)), sigmoid(z)),
    "mish": mish,
    "exp": lambda z: (math.exp(z), math.exp(z)),
}


def test_every_element_wise_activation_is_written_out():
    assert set(HIDDEN) == {cls.name for cls in ACTIVATIONS.values()} - {"softmax"}


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("activation", HIDDEN)
def test_2_3_2_1(backend, activation, n):
    """Identity output and half the squared error: the chain rule from z back to x."""
    g = HIDDEN[activation]
    W1, W2, W3 = numbers(1, 2, 3), numbers(2, 3, 2), numbers(3, 2, 1)
    b1, b2, b3 = numbers(4, 3), numbers(5, 2), numbers(6, 1)
    X, y = numbers(7, n, 2), numbers(8, n)

    value = 0.0
    dW1, dW2, dW3 = [[0.0] * 3 for _ in range(2)], [[0.0] * 2 for _ in range(3)], [[0.0], [0.0]]
    db1, db2, db3, dX = [0.0] * 3, [0.0] * 2, [0.0], []
    for x, target in zip(X, y, strict=True):
        u = [x[0] * W1[0][j] + x[1] * W1[1][j] + b1[j] for j in range(3)]
        h = [g(u[j])[0] for j in range(3)]
        v = [h[0] * W2[0][k] + h[1] * W2[1][k] + h[2] * W2[2][k] + b2[k] for k in range(2)]
        q = [g(v[k])[0] for k in range(2)]
        z = q[0] * W3[0][0] + q[1] * W3[1][0] + b3[0]
        value += (z - target) ** 2 / 2 / n

        dz = (z - target) / n
        dv = [dz * W3[k][0] * g(v[k])[1] for k in range(2)]
        du = [(dv[0] * W2[j][0] + dv[1] * W2[j][1]) * g(u[j])[1] for j in range(3)]
        for k in range(2):
            dW3[k][0] += dz * q[k]
            db2[k] += dv[k]
            for j in range(3):
                dW2[j][k] += dv[k] * h[j]
        for j in range(3):
            db1[j] += du[j]
            for i in range(2):
                dW1[i][j] += du[j] * x[i]
        db3[0] += dz
        dX.append([du[0] * W1[i][0] + du[1] * W1[i][1] + du[2] * W1[i][2] for i in range(2)])

    network = build(backend, [W1, W2, W3], [b1, b2, b3], [activation, activation, "identity"])
    check(network, X, y, "squared_error", value, [dW1, dW2, dW3], [db1, db2, db3], dX)


# --- 2. Neuron by neuron ----------------------------------------------------------------------


def neuron_by_neuron(w: list, b: list, x: list[float], y: list[float]) -> tuple:
    """Cost and partial derivatives of one sample, sigmoid in every layer.

    ``w[l][j][k]`` leads from neuron k of the layer before to neuron j of layer l.
    """
    z, a = [], [x]
    for w_l, b_l in zip(w, b, strict=True):
        z.append([])
        for j in range(len(w_l)):
            z[-1].append(b_l[j] + sum(w_l[j][k] * a[-1][k] for k in range(len(a[-1]))))
        a.append([sigmoid(z_j) for z_j in z[-1]])
    cost = sum((y[j] - a[-1][j]) ** 2 for j in range(len(y))) / 2

    last = len(w) - 1
    delta: list = [None] * len(w)
    delta[last] = [
        (a[-1][j] - y[j]) * sigmoid(z[last][j]) * (1 - sigmoid(z[last][j])) for j in range(len(y))
    ]
    for layer in reversed(range(last)):
        delta[layer] = []
        for k in range(len(z[layer])):
            behind = sum(
                w[layer + 1][j][k] * delta[layer + 1][j] for j in range(len(delta[layer + 1]))
            )
            delta[layer].append(behind * sigmoid(z[layer][k]) * (1 - sigmoid(z[layer][k])))
    by_w = [
        [[delta[layer][j] * a[layer][k] for k in range(len(a[layer]))] for j in range(len(w_l))]
        for layer, w_l in enumerate(w)
    ]
    by_x = [sum(w[0][j][k] * delta[0][j] for j in range(len(w[0]))) for k in range(len(x))]
    return cost, by_w, delta, by_x


def average_over_samples(w: list, b: list, X: list, y: list) -> tuple:
    """The same for a batch: the mean of the samples, weights in the library's orientation."""
    n = len(X)
    value = 0.0
    weights = [[[0.0] * len(w_l) for _ in w_l[0]] for w_l in w]
    biases = [[0.0] * len(b_l) for b_l in b]
    inputs = []
    for x, target in zip(X, y, strict=True):
        cost, by_w, by_b, by_x = neuron_by_neuron(w, b, x, target)
        value += cost / n
        inputs.append([d / n for d in by_x])
        for layer in range(len(w)):
            for j in range(len(w[layer])):
                biases[layer][j] += by_b[layer][j] / n
                for k in range(len(w[layer][j])):
                    weights[layer][k][j] += by_w[layer][j][k] / n
    return value, weights, biases, inputs


def neurons(widths: tuple[int, ...]) -> tuple[list, list]:
    """Weights ``w[l][j][k]`` and biases ``b[l][j]`` of a network of these widths."""
    w = [numbers(10 + layer, k, j) for layer, (j, k) in enumerate(pairwise(widths))]
    b = [numbers(20 + layer, k) for layer, k in enumerate(widths[1:])]
    return w, b


def transposed(w: list) -> list:
    """From ``w[j][k]`` to ``W[k][j]``."""
    return [[w[j][k] for j in range(len(w))] for k in range(len(w[0]))]


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("widths", [(2, 3, 1), (3, 2, 4), (2, 3, 4, 2), (1, 2, 1, 2, 1)])
def test_neuron_by_neuron(backend, widths, n):
    w, b = neurons(widths)
    X, y = numbers(30, n, widths[0]), numbers(31, n, widths[-1])
    value, weights, biases, inputs = average_over_samples(w, b, X, y)
    network = build(backend, [transposed(w_l) for w_l in w], b, ["sigmoid"] * len(w))
    check(network, X, y, "squared_error", value, weights, biases, inputs)


# --- 3. One hidden layer without bias, cross-entropy, an L2 penalty ---------------------------

LAMBDA = 0.7


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("activation", ["tanh", "relu", "sigmoid"])
def test_one_hidden_layer_with_a_penalty(backend, activation, labels):
    """J = L + s: both gradients contain lambda W."""
    g = HIDDEN[activation]
    d, n_hidden, n_classes = 3, 4, 3
    W1, W2 = numbers(40, d, n_hidden), numbers(41, n_hidden, n_classes)
    X, classes = numbers(42, 4, d), [2, 0, 1, 2]
    n = len(X)

    squares = sum(value**2 for W in (W1, W2) for row in W for value in row)
    value = LAMBDA / 2 * squares
    dW1 = [[LAMBDA * W1[i][j] for j in range(n_hidden)] for i in range(d)]
    dW2 = [[LAMBDA * W2[j][k] for k in range(n_classes)] for j in range(n_hidden)]
    dX = []
    for x, label in zip(X, classes, strict=True):
        z = [sum(x[i] * W1[i][j] for i in range(d)) for j in range(n_hidden)]
        h = [g(z_j)[0] for z_j in z]
        o = [sum(h[j] * W2[j][k] for j in range(n_hidden)) for k in range(n_classes)]
        total = sum(math.exp(o_k) for o_k in o)
        value -= math.log(math.exp(o[label]) / total) / n

        do = [(math.exp(o[k]) / total - (1 if k == label else 0)) / n for k in range(n_classes)]
        dh = [sum(do[k] * W2[j][k] for k in range(n_classes)) for j in range(n_hidden)]
        dz = [dh[j] * g(z[j])[1] for j in range(n_hidden)]
        for j in range(n_hidden):
            for k in range(n_classes):
                dW2[j][k] += do[k] * h[j]
            for i in range(d):
                dW1[i][j] += dz[j] * x[i]
        dX.append([sum(dz[j] * W1[i][j] for j in range(n_hidden)) for i in range(d)])

    network = build(backend, [W1, W2], [None, None], [activation, "softmax"])
    one_hot = [[float(k == label) for k in range(n_classes)] for label in classes]
    y = classes if labels else one_hot

    # The penalty by itself: s in the value, lambda W in the gradient, nothing in that of X.
    with_penalty, without = (network.loss_and_grad(X, y, "log_loss", a) for a in (LAMBDA, 0.0))
    to_host = backend.to_host
    assert with_penalty[0] - without[0] == pytest.approx(LAMBDA / 2 * squares, rel=1e-12)
    theta = np.array(to_host(network.parameters))
    difference = to_host(with_penalty[1].flat) - to_host(without[1].flat)
    assert difference == pytest.approx(LAMBDA * theta, rel=1e-12, abs=1e-14)
    assert to_host(with_penalty[1].inputs) == close(to_host(without[1].inputs))

    check(network, X, y, "log_loss", value, [dW1, dW2], [None, None], dX, alpha=LAMBDA)


def test_biases_are_not_penalised(backend):
    network = build(
        backend, [numbers(43, 2, 3), numbers(44, 3, 1)], [[1.0] * 3, [1.0]], ["tanh"] * 2
    )
    X, y = numbers(45, 4, 2), numbers(46, 4)
    gradients = [network.loss_and_grad(X, y, "squared_error", a)[1] for a in (LAMBDA, 0.0)]
    for with_penalty, without in zip(gradients[0].biases, gradients[1].biases, strict=True):
        assert (backend.to_host(with_penalty) == backend.to_host(without)).all()


# --- 4. 2-2-1 with ReLU, and XOR --------------------------------------------------------------


@pytest.mark.parametrize(
    "X",
    [
        pytest.param([[0.5, -0.25]], id="one sample, both on"),
        pytest.param([[-1.0, -1.5]], id="one sample, one off"),
        pytest.param([[-1.0, 1.0]], id="one sample, both off"),
        pytest.param([[1.0, 1.0], [-1.0, 2.0], [0.5, 0.0], [0.0, 0.0]], id="four samples"),
        pytest.param([[-1.0, -1.0], [0.25, -1.0]], id="an indicator on the edge"),
    ],
)
def test_2_2_1_with_relu(backend, X):
    """The nine partial derivatives, with the indicator [h > 0]."""
    w1, w2, w3, w4, w5, w6 = 0.5, -1.0, 0.75, 0.5, 1.5, -0.5
    b1, b2, b3 = 0.25, -0.125, 0.375
    if X[0] == [-1.0, -1.0]:
        b1 = -0.5  # h1 = -0.5 + 1 - 0.5 = 0 exactly
    y = [1.0, -0.5, 0.25, 2.0][: len(X)]
    n = len(X)

    value = 0.0
    d = dict.fromkeys(("w1", "w2", "w3", "w4", "w5", "w6", "b1", "b2", "b3"), 0.0)
    dX = []
    for (x1, x2), target in zip(X, y, strict=True):
        h1 = w1 * x1 + w2 * x2 + b1
        h2 = w3 * x1 + w4 * x2 + b2
        on1, on2 = int(h1 > 0), int(h2 > 0)
        o = w5 * h1 * on1 + w6 * h2 * on2 + b3
        value += (o - target) ** 2 / 2 / n
        e = (o - target) / n
        d["w1"] += e * w5 * on1 * x1
        d["w2"] += e * w5 * on1 * x2
        d["w3"] += e * w6 * on2 * x1
        d["w4"] += e * w6 * on2 * x2
        d["w5"] += e * h1 * on1
        d["w6"] += e * h2 * on2
        d["b1"] += e * w5 * on1
        d["b2"] += e * w6 * on2
        d["b3"] += e
        dX.append([e * (w5 * on1 * w1 + w6 * on2 * w3), e * (w5 * on1 * w2 + w6 * on2 * w4)])

    network = build(
        backend, [[[w1, w3], [w2, w4]], [[w5], [w6]]], [[b1, b2], [b3]], ["relu", "identity"]
    )
    weights = [[[d["w1"], d["w3"]], [d["w2"], d["w4"]]], [[d["w5"]], [d["w6"]]]]
    biases = [[d["b1"], d["b2"]], [d["b3"]]]
    check(network, X, y, "squared_error", value, weights, biases, dX)


class PrintedCost(Callback):
    """Prints the objective every hundred epochs."""

    def on_epoch(self, run: Any) -> None:
        if (run.epoch + 1) % 100 == 0:
            print(f"epoch {run.epoch + 1}: cost {run.history['loss'][-1]:.3e}")


# Two ReLUs are the fewest that can express XOR; from most initial weights they get stuck.
@pytest.mark.parametrize("seed", [0, 1, 11])
def test_xor_is_learnt_to_zero_error(capsys, seed):
    X, y = [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], [0.0, 1.0, 1.0, 0.0]
    network = Network(2, [Dense(2, "relu"), Dense(1)], device="cpu", seed=seed)
    history = fit(
        network, X, y, loss="squared_error", optimizer=SGD(learning_rate=0.3), epochs=1000,
        batch_size=None, callbacks=[PrintedCost()], verbose=0,
    )  # fmt: skip
    output = network.predict(X)[:, 0]
    assert ((output > 0.5) == [False, True, True, False]).all()
    assert output == pytest.approx(y, abs=1e-4)

    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"epoch {epoch}: cost {history['loss'][epoch - 1]:.3e}" for epoch in range(100, 1001, 100)
    ]
    costs = [float(line.split()[-1]) for line in lines]
    assert all(later < earlier for earlier, later in pairwise(costs))
    assert costs[-1] < 1e-8


# --- 5. The shapes of every intermediate ------------------------------------------------------


@pytest.mark.parametrize("widths", [(3, 4, 1), (3, 2, 4, 1)], ids=["3-4-1", "3-2-4-1"])
def test_the_shapes_of_ten_rows_of_three_features(backend, widths):
    n = 10
    w, b = neurons(widths)
    X, y = numbers(70, n, 3), [[float(i % 2)] for i in range(n)]
    network = build(backend, [transposed(w_l) for w_l in w], b, ["sigmoid"] * len(w))

    traced = network.trace(X)
    _, gradient = network.loss_and_grad(X, y, "squared_error")
    assert len(traced) == len(gradient.weights) == len(gradient.biases) == len(w)
    a = X
    for layer, values in enumerate(traced):
        n_in, n_out = widths[layer : layer + 2]
        for array, shape in (
            (values.z, (n, n_out)),
            (values.a, (n, n_out)),
            (network.weights[layer], (n_in, n_out)),
            (gradient.weights[layer], (n_in, n_out)),
            (network.biases[layer], (n_out,)),
            (gradient.biases[layer], (n_out,)),
        ):
            assert array.shape == shape
        z = [
            [b[layer][j] + sum(w[layer][j][k] * row[k] for k in range(n_in)) for j in range(n_out)]
            for row in a
        ]
        a = [[sigmoid(value) for value in row] for row in z]
        assert backend.to_host(values.z) == close(z)
        assert backend.to_host(values.a) == close(a)
    predicted = network.predict(np.array(X))
    assert predicted.shape == (n, 1)
    assert predicted == close(a)
    assert gradient.inputs.shape == (n, 3)
    assert gradient.flat.shape == network.parameters.shape == (network.n_parameters,)

    value, weights, biases, inputs = average_over_samples(w, b, X, y)
    check(network, X, y, "squared_error", value, weights, biases, inputs)


# --- 6. Breast cancer and iris ----------------------------------------------------------------


def breast_cancer_layers(bias: bool) -> list:
    return [
        Dense(64, "sigmoid", bias), Dense(32, "relu", bias), Dropout(0.2),
        Dense(1, "sigmoid", bias),
    ]  # fmt: skip


def iris_layers(bias: bool) -> list:
    return [
        Dense(16, "sigmoid", bias), Dense(16, "sigmoid", bias), Dense(3, "softmax", bias),
    ]  # fmt: skip


DATA = {
    "breast cancer": (datasets.load_breast_cancer, breast_cancer_layers, "squared_error", 64),
    "iris": (datasets.load_iris, iris_layers, "log_loss", 32),
}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", DATA)
def test_real_data(name, bias):
    # From one machine to another the last bits differ, and after a hundred epochs so does the
    # accuracy of a seed: hence a mean, and a bound with room below it.
    load, layers, loss, batch_size = DATA[name]
    X, y = load(return_X_y=True)
    X_train, X_test, y_train, y_test = selection.train_test_split(
        X, y, test_size=0.3, random_state=101
    )
    scaler = preprocessing.MinMaxScaler().fit(X_train)
    accuracies = []
    for seed in range(5):
        network = Network(X.shape[1], layers(bias), device="cpu", seed=seed)
        fit(
            network, scaler.transform(X_train), y_train, loss=loss,
            optimizer=Adam(learning_rate=0.05, beta_1=0.9, beta_2=0.99), epochs=100,
            batch_size=batch_size, verbose=0,
        )  # fmt: skip
        output = network.predict(scaler.transform(X_test))
        predicted = output[:, 0] > 0.5 if network.n_outputs == 1 else output.argmax(axis=1)
        accuracies.append(np.mean(predicted == y_test))
    assert np.mean(accuracies) >= 0.94, accuracies
