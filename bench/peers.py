"""PyTorch and JAX as contenders, each written as its own documentation would."""

from __future__ import annotations

import os
from functools import partial
from shutil import which
from typing import Any

import numpy as np

from bench.contenders import LEARNING_RATE, Contender, Products
from bench.problem import SEED, Problem


class Torch(Contender):
    """Modules, autograd and Adam, in eager mode. The data are tensors before fit is called."""

    name = "PyTorch eager"
    library = "torch"
    fused = False

    def prepare(self) -> None:
        import torch
        from torch import nn

        torch.manual_seed(SEED)
        layers: list[Any] = []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            linear = nn.Linear(*weight.shape)
            linear.weight = nn.Parameter(torch.from_numpy(weight.T.copy()))
            linear.bias = nn.Parameter(torch.from_numpy(bias.copy()))
            layers += [linear, nn.ReLU()]
        self.model = nn.Sequential(*layers[:-1])
        self.inputs, self.labels = torch.from_numpy(self.X), torch.from_numpy(self.y)

    def objective(self, X: Any, y: Any) -> Any:
        """The mean log loss of a batch."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(self.model(X), y)

    def fit(self) -> list[float]:
        import torch

        n, totals = len(self.X), []
        optimizer = torch.optim.Adam(
            self.model.parameters(), lr=LEARNING_RATE, eps=self.epsilon, fused=self.fused
        )
        for _ in range(self.problem.epochs):
            order: Any = torch.randperm(n) if self.shuffle else torch.arange(n)
            total = torch.zeros((), dtype=torch.float64)
            for rows in order.split(self.problem.batch):
                optimizer.zero_grad()
                loss = self.objective(self.inputs[rows], self.labels[rows])
                loss.backward()
                optimizer.step()
                total += loss.detach() * len(rows)
            totals.append(total)
        return [float(total) / n for total in totals]

    def predict(self) -> Any:
        """Probabilities, of shape ``(n_samples, n_classes)``."""
        import torch

        with torch.inference_mode():
            return self.model(self.inputs).softmax(dim=1).numpy()


class TorchFused(Torch):
    """With the fused kernel of Adam."""

    name = "PyTorch, fused Adam"
    fused = True


class TorchCompiled(TorchFused):
    """With the forward and backward pass compiled too."""

    name = "torch.compile"

    @classmethod
    def missing(cls) -> str | None:
        compiler = os.environ.get("CXX", "g++")
        return super().missing() or (None if which(compiler) else f"no C++ compiler, {compiler}")

    def prepare(self) -> None:
        super().prepare()
        import torch

        # A kernel for each number of rows: those for any number are slower.
        self.compiled = torch.compile(super().objective, dynamic=False)

    def objective(self, X: Any, y: Any) -> Any:
        return self.compiled(X, y)


class Jax(Contender):
    """One jitted function an epoch, which scans over the batches."""

    name = "JAX"
    library = "jax"

    def prepare(self) -> None:
        import jax

        _wide(self.problem)
        pairs = zip(self.weights, self.biases, strict=True)
        self.parameters = [(jax.numpy.asarray(w), jax.numpy.asarray(b)) for w, b in pairs]
        self.inputs, self.labels = jax.numpy.asarray(self.X), jax.numpy.asarray(self.y)
        self.rng = np.random.default_rng(SEED)
        self.epoch = jax.jit(partial(_epoch, batch=self.problem.batch, epsilon=self.epsilon))

    def fit(self) -> list[float]:
        import jax

        zeros = jax.tree.map(jax.numpy.zeros_like, self.parameters)
        state = self.parameters, zeros, zeros, 0.0
        n, totals = len(self.X), []
        for _ in range(self.problem.epochs):
            order = self.rng.permutation(n) if self.shuffle else np.arange(n)
            state, total = self.epoch(state, self.inputs, self.labels, order)
            totals.append(total)
        self.parameters = state[0]
        return [float(total) / n for total in totals]  # waits for them


def _epoch(state: Any, X: Any, y: Any, order: Any, batch: int, epsilon: float) -> Any:
    """The state after an epoch, and the sum of the losses of its samples."""
    batch = min(batch, len(order))
    full = len(order) // batch * batch
    state, losses = steps(state, X, y, order[:full].reshape(-1, batch), epsilon)
    total = losses.sum() * batch
    if full < len(order):
        state, losses = steps(state, X, y, order[None, full:], epsilon)
        total = total + losses[0] * (len(order) - full)
    return state, total


def steps(
    state: Any, X: Any, y: Any, order: Any, epsilon: float, rate: float = LEARNING_RATE
) -> Any:
    """The state after a step on each line of row numbers, and the losses of the batches."""
    import jax

    def step(state: Any, rows: Any) -> Any:
        loss, gradient = jax.value_and_grad(_objective)(state[0], X[rows], y[rows])
        return _adam(state, gradient, epsilon, rate), loss

    return jax.lax.scan(step, state, order)


def _objective(parameters: Any, x: Any, y: Any) -> Any:
    """The mean log loss of a batch."""
    import jax

    *hidden, (w_last, b_last) = parameters
    for w, b in hidden:
        x = jax.nn.relu(x @ w + b)
    logits = jax.nn.log_softmax(x @ w_last + b_last)
    return -jax.numpy.take_along_axis(logits, y[:, None], axis=1).mean()


def _adam(state: Any, gradient: Any, epsilon: float, rate: float) -> Any:
    """Parameters, moments and number of steps after one of Adam, as in the paper."""
    import jax

    theta, m, v, t = state
    t = t + 1.0
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, gradient)
    v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, gradient)
    m_scale, v_scale = 1 - 0.9**t, 1 - 0.999**t

    def updated(theta: Any, m: Any, v: Any) -> Any:
        root = jax.numpy.sqrt(v / v_scale) + epsilon
        return theta - rate * (m / m_scale) / root

    return jax.tree.map(updated, theta, m, v), m, v, t


class TorchProducts(Products):
    """The same products by PyTorch."""

    name = "GEMMs by PyTorch"
    library = "torch"

    def prepare(self) -> None:
        import torch

        super().prepare()
        self.X = torch.from_numpy(self.X)
        for name in ("weights", "outputs", "errors", "gradients"):
            setattr(self, name, [torch.from_numpy(array) for array in getattr(self, name)])
        self.matmul = torch.matmul


class JaxProducts(Products):
    """The same products by JAX, an epoch in one jitted scan."""

    name = "GEMMs by JAX"
    library = "jax"

    def prepare(self) -> None:
        import jax

        _wide(self.problem)
        super().prepare()
        full = len(self.X) // self.batch * self.batch
        parts = self.X[:full].reshape(-1, self.batch, self.X.shape[1]), self.X[full:][None]
        self.parts = [jax.numpy.asarray(part) for part in parts if part.size]
        self.weights = [jax.numpy.asarray(weight) for weight in self.weights]
        self.epoch = jax.jit(_products)

    def fit(self) -> list[float]:
        for _ in range(self.problem.epochs):
            for part in self.parts:
                self.gradients = self.epoch(self.weights, part)
        for gradient in self.gradients:
            gradient.block_until_ready()
        return []


def _products(weights: Any, batches: Any) -> Any:
    """The gradients of the last batch, computed for each: as `Products` does."""
    import jax

    def step(_: Any, x: Any) -> Any:
        values = [x]
        for weight in weights:
            values.append(values[-1] @ weight)
        error = values.pop()
        gradients: list[Any] = []
        for value, weight in zip(reversed(values), reversed(weights), strict=True):
            gradients.insert(0, value.T @ error)
            error = error @ weight.T  # that of the first layer is not used, so not computed
        return gradients, None

    return jax.lax.scan(step, [jax.numpy.zeros_like(weight) for weight in weights], batches)[0]


def _wide(problem: Problem) -> None:
    """Without it JAX computes in float32 only."""
    import jax

    if problem.dtype == "float64":
        config: Any = jax.config
        config.update("jax_enable_x64", True)
