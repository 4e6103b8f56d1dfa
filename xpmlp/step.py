"""One training step: gather a batch, forward, backward, clip, update."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

from xpmlp import rules
from xpmlp.data import as_matrix, as_target, as_weight, blocks, copy_rows, take_rows
from xpmlp.layers import DenseStage
from xpmlp.losses import Loss
from xpmlp.network import Network
from xpmlp.optimizers import Optimizer, OptimizerState
from xpmlp.program import Objective, Objectives
from xpmlp.typing import Array

# Rows evaluated at a time on validation data.
_EVALUATE_ROWS = 1024


class Dataset:
    """Checked samples, targets and weights on the network's device."""

    x: Any

    def __init__(
        self,
        network: Network,
        X: Any,
        y: Any,
        weight: Any,
        loss: Loss,
        names: tuple[str, ...] = ("X", "y", "sample_weight"),
    ) -> None:
        backend, dtype = network.backend, network.dtype
        self.chosen_loss = loss
        self.x = as_matrix(backend, X, names[0], dtype, network.n_features)
        self.n_samples: int = self.x.shape[0]
        n = self.n_samples
        self.y, self.labels = as_target(backend, y, names[1], dtype, loss, n, network.n_outputs)
        self.weight: Array | None = None
        if weight is not None:
            self.weight = as_weight(backend, weight, names[2], dtype, n)
        self._network = network
        self._rows = min(n, _EVALUATE_ROWS)
        self._objectives = Objectives(
            network,
            self._rows,
            loss,
            mean=False,
            labels=self.labels,
            weighted=weight is not None,
        )

    @cached_property
    def y_host(self) -> Any:
        """The targets as a NumPy array, for metrics."""
        return self._network.backend.to_host(self.y)

    def stage(self, rows: Array | slice, objective: Objective) -> None:
        """Gather a batch into the buffers of `objective`."""
        backend = objective.backend
        move: Callable[..., None] = copy_rows if isinstance(rows, slice) else take_rows
        move(backend, self.x, rows, objective.x)
        move(backend, self.y, rows, objective.y)
        if self.weight is not None and objective.weight is not None:
            move(backend, self.weight, rows, objective.weight)

    def sweep(self, objectives: Objectives, n_rows: int) -> Iterator[Objective]:
        """Stage all samples, block by block; gives the objective that holds each."""
        for part in blocks(self.n_samples, n_rows):
            objective = objectives[part.stop - part.start]
            self.stage(part, objective)
            yield objective

    def loss(self) -> float:
        """The mean loss over all samples, without penalties and dropout."""
        backend, accumulate = self._network.backend, self._network.policy.accumulate
        total = backend.zeros((), accumulate)
        for objective in self.sweep(self._objectives, self._rows):
            total = total + objective.forward()
        if self.weight is None:
            return backend.read(total) / self.n_samples
        return backend.read(total) / backend.read(backend.total(self.weight, accumulate))


class TrainingStep:
    """One training step: gather, forward, backward, clip, update.

    Parameters
    ----------
    network : Network
    optimizer : Optimizer
    n_rows : int
        Rows of a full batch.
    data : Dataset
    alpha, l1, clip_norm, clip_value
        See :func:`xpmlp.fit`.
    alpha_over_n : bool, default False
        See :class:`xpmlp.program.Objective`.
    state : OptimizerState, optional
        To go on from; default: a fresh one.
    """

    def __init__(
        self,
        network: Network,
        optimizer: Optimizer,
        n_rows: int,
        data: Dataset,
        alpha: float,
        l1: float = 0.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        *,
        alpha_over_n: bool = False,
        state: OptimizerState | None = None,
    ) -> None:
        self.network, self.optimizer, self.data = network, optimizer, data
        self.clip_norm, self.clip_value = clip_norm, clip_value
        backend, policy = network.backend, network.policy
        self.grad = backend.zeros((network.n_parameters,), policy.parameter)
        self.factor = backend.empty((), policy.parameter)
        self.alive: Array | None = None
        self.state = state or optimizer.init(network.parameters, network.n_weights, backend)
        self.objectives = Objectives(
            network,
            n_rows,
            data.chosen_loss,
            self.grad,
            alpha=alpha,
            alpha_over_n=alpha_over_n,
            l1=l1,
            labels=data.labels,
            weighted=data.weight is not None,
        )

    def forward(self, indices: Array, epoch: int, batch: int) -> Any:
        """The objective of a batch, a 0-d array on the device."""
        self.objective = self.objectives[indices.shape[0]]
        self.data.stage(indices, self.objective)
        return self.objective.forward(epoch, batch)

    def guard(self, value: Array) -> None:
        """Take no more gradients from the first non-finite objective on, without reading it."""
        backend = self.network.backend
        if self.alive is None:
            self.alive = backend.zeros((1,), self.network.policy.parameter) + 1.0
        finite = rules.gate(backend.functions, self.alive, value - value + 1.0)
        backend.copy(finite, self.alive)

    def total_of_parameters(self) -> float:
        """The sum of all parameters, which is finite if all of them are."""
        backend = self.network.backend
        return backend.read(backend.total(self.network.parameters, self.network.policy.accumulate))

    def backward(self) -> None:
        """The gradient of that objective, and the update of the parameters."""
        backend, grad = self.network.backend, self.grad
        self.objective.backward()
        if self.alive is not None:
            backend.elementwise(rules.gate)((grad,), grad, self.alive)
        if self.clip_value is not None:
            backend.elementwise(rules.clip)((grad,), grad, float(self.clip_value))
        if self.clip_norm is not None:
            squares = backend.total_squares(grad, self.network.policy.accumulate)
            factor = rules.clip_norm_factor(backend.functions, squares, float(self.clip_norm))
            backend.copy(factor, self.factor)
            backend.elementwise(rules.multiply)((grad,), grad, self.factor)
        self.optimizer.update(self.network.parameters, grad, self.state)

    def first_non_finite(self) -> str:
        """Where NaN or infinity first appears in the newest forward pass, in words."""
        xp = self.network.backend.xp

        def broken(*arrays: Array | None) -> bool:
            return any(x is not None and not bool(xp.all(xp.isfinite(x))) for x in arrays)

        place = ""
        stages = self.objective.program.stages
        for index, (layer, stage) in enumerate(zip(self.network.layers, stages, strict=True)):
            place = f"layers[{index}], {layer}"
            if isinstance(stage, DenseStage) and broken(stage.w, stage.b):
                return f"the first non-finite values are in the parameters of {place}"
            if broken(stage.a):
                return f"the first non-finite values are in the output of {place}"
        return f"all layers are finite, but the loss of the output of {place} is not"
