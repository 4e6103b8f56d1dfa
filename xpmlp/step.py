"""One training step: gather a batch, forward, backward, clip, update."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import chain
from math import isfinite
from typing import Any

from xpmlp import rules
from xpmlp.backends import host, sum_of
from xpmlp.data import HostRows, as_matrix, as_target, as_weight, blocks, copy_rows, take_rows
from xpmlp.layers import DenseStage
from xpmlp.losses import Loss
from xpmlp.network import Network
from xpmlp.optimizers import FLUSH_EVERY, Optimizer, OptimizerState
from xpmlp.program import Objective, Objectives
from xpmlp.typing import Array, Replay

_log = logging.getLogger("xpmlp")
# Operations of the steps of one replay, about a tenth of a second: it cannot be interrupted. A
# device that computes beside the host does so many in that time.
_CHUNK_WORK = 1e10
_CHUNK_WORK_OF_DEVICE = 1e12
# Bytes of host memory that are moved to the device for the steps of one replay.
_MOVED_BYTES = 1 << 23
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
        # Of the model a gradient and what an optimizer remembers, at most three vectors.
        beside = 4 * 8 * network.n_parameters
        self.x = as_matrix(backend, X, names[0], dtype, network.n_features, beside)
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

    def fingerprint(self) -> str:
        """A digest of shapes, dtypes and all numbers: whether the data is the same."""
        backend, digest = self._network.backend, sha256()
        parts = [self.x, self.y] + ([] if self.weight is None else [self.weight])
        for part in parts:
            for block in blocks(self.n_samples, _EVALUATE_ROWS):
                on_host = isinstance(part, HostRows)
                some = part[block] if on_host else backend.to_host(part[block, ...])
                digest.update(some.tobytes())
            digest.update(f"{tuple(part.shape)} {some.dtype}".encode())
        return digest.hexdigest()[:16]

    def stage(
        self,
        rows: Array | slice,
        objective: Objective,
        on_host: Any = None,
        moved: tuple[Array, Array] | None = None,
    ) -> None:
        """Gather a batch into the buffers of `objective`.

        Parameters
        ----------
        rows : array of shape (n,), or slice
        objective : Objective
        on_host : NumPy array of shape (n,), optional
            As in :func:`take_rows`.
        moved : (array of shape (m, n_features), array of shape (n,)), optional
            Samples that are on the device already, and the rows of the batch there.
        """
        backend, pairs = objective.backend, [(self.y, objective.y)]
        if self.weight is not None and objective.weight is not None:
            pairs.append((self.weight, objective.weight))
        if isinstance(rows, slice):
            for part, out in [(self.x, objective.x), *pairs]:
                copy_rows(backend, part, rows, out)
        else:
            x, places = moved or (self.x, rows)
            take_rows(backend, x, places, objective.x, on_host)
            for part, out in pairs:
                take_rows(backend, part, rows, out)

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
            backend.elementwise(rules.add)((total,), total, objective.forward())
        if self.weight is None:
            return backend.read(total) / self.n_samples
        return backend.read(total) / sum_of(backend, self.weight, accumulate)


@dataclass(frozen=True)
class _Captured:
    """Captured steps on batches of one size, and where their inputs and outputs stand.

    `moved` are samples in the order of the steps, where all are in host memory.
    """

    replay: Replay
    rows: Array
    numbers: Array
    values: Array
    moved: Array | None


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
    n_steps : int, default 0
        How many are to come: an adapter may capture them if they are many.
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
        n_steps: int = 0,
    ) -> None:
        self.network, self.optimizer, self.data = network, optimizer, data
        self.clip_norm, self.clip_value = clip_norm, clip_value
        self.n_rows, self.n_steps = n_rows, n_steps
        self.backend = backend = network.backend.recordable()
        policy = network.policy
        self.grad = backend.zeros((network.n_parameters,), policy.parameter)
        self.squares = backend.empty((), policy.accumulate)
        self.factor = backend.empty((), policy.parameter)
        self.alive = backend.zeros((), policy.accumulate)
        self.alive[...] = 1.0
        self.gate = backend.empty((), policy.parameter)
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
            backend=backend,
        )
        self._captured: dict[int, _Captured | None] = {}
        # The row numbers of the epoch, batch after batch, where X is on the host.
        self.order_on_host: Any = None

    def forward(
        self, indices: Array, epoch: int, batch: int, moved: tuple[Array, Array] | None = None
    ) -> Array:
        """The objective of a batch, a 0-d array on the device; `moved` as in :meth:`stage`."""
        self.objective = self.objectives[indices.shape[0]]
        on_host = self._on_host(batch, indices.shape[0])
        self.data.stage(indices, self.objective, on_host, moved)
        return self.objective.forward(epoch, batch)

    def _on_host(self, batch: int, n: int) -> Any:
        """The numbers of `n` rows from a batch on, where X is on the host."""
        start = batch * self.n_rows
        return None if self.order_on_host is None else self.order_on_host[start : start + n]

    def overflowed(self) -> str | None:
        """What is not finite after the updates so far: "parameters", or one of the slots."""
        network, backend = self.network, self.network.backend
        named = {"parameters": network.parameters, **self.state.slots}
        total, part = (backend.zeros((), network.policy.accumulate) for _ in range(2))
        for x in named.values():
            backend.total(x, part)
            backend.elementwise(rules.add)((total,), total, part)
        # The sum is finite only if all are; it may overflow where all are.
        if isfinite(backend.read(total)):
            return None
        broken = (name for name, x in named.items() if not _all_finite(backend.xp, x))
        return next(broken, None)

    def backward(self) -> None:
        """The gradient of that objective, and the update of the parameters."""
        (numbers,) = self.optimizer.advance(self.state)
        self._backward(numbers)
        self.optimizer.flush(self.backend, self.state)

    def _backward(self, numbers: Sequence[Any]) -> None:
        backend, grad = self.backend, self.grad
        self.objective.backward()
        if not backend.immediate:
            # No gradient counts from the first non-finite objective on, which nobody has read yet.
            value = self.objective.value
            backend.elementwise(rules.where_finite)((self.alive,), self.alive, value)
            backend.copy(self.alive, self.gate)
            backend.elementwise(rules.gate)((grad,), grad, self.gate)
        if self.clip_value is not None:
            backend.elementwise(rules.clip)((grad,), grad, float(self.clip_value))
        if self.clip_norm is not None:
            backend.total_squares(grad, self.squares)
            limit = float(self.clip_norm)
            backend.elementwise(rules.clip_norm_factor)((self.squares,), self.squares, limit)
            backend.copy(self.squares, self.factor)
            backend.elementwise(rules.multiply)((grad,), grad, self.factor)
        self.optimizer.apply(backend, self.network.parameters, grad, self.state, numbers)

    def replay(self, indices: Array, n_rows: int, epoch: int, batch: int, losses: Array) -> int:
        """Some steps in one call, where the adapter has captured them.

        Parameters
        ----------
        indices : array of shape (n_samples,)
            Rows of consecutive batches of `n_rows`; the first ones are taken.
        n_rows, epoch, batch : int
            `batch` is the number of the first one.
        losses : array of shape (n_batches,)
            Receives the objectives.

        Returns
        -------
        int
            How many steps were done: 0 if none can be, or the first objective is not finite. An
            objective that is not finite ends them before its update.
        """
        if n_rows not in self._captured:
            self._captured[n_rows] = self._capture(n_rows)
        captured = self._captured[n_rows]
        if captured is None:
            return 0
        state, optimizer, backend = self.state, self.optimizer, self.network.backend
        room = FLUSH_EVERY - state.step % FLUSH_EVERY
        n = min(indices.shape[0] // n_rows, captured.values.shape[0], room)
        before = state.step, state.mu_product
        values = chain.from_iterable(optimizer.advance(state, n))
        numbers = host().xp.fromiter(values, "float64").reshape(n, -1)
        backend.copy(backend.from_host(numbers), captured.numbers[:n, :])
        taken = slice(0, n * n_rows)
        backend.copy(indices[taken], captured.rows[taken])
        if captured.moved is not None:
            on_host = self._on_host(batch, n * n_rows)
            take_rows(backend, self.data.x, indices[taken], captured.moved[taken, :], on_host)
        done = captured.replay(n, epoch, batch)
        backend.copy(captured.values[:n], losses[batch : batch + n])
        if done < n:
            state.step, state.mu_product = before
            optimizer.advance(state, done)
        optimizer.flush(backend, state)
        return done

    def _capture(self, n_rows: int) -> _Captured | None:
        """Steps on batches of `n_rows`, as many as one call may do."""
        backend, policy = self.network.backend, self.network.policy
        if self.backend is backend or not self._made_of_primitives():
            return None
        # That of a full batch: either all batches of a run are captured, or none.
        work = 6.0 * self.n_rows * self.network.n_weights
        most = _CHUNK_WORK if backend.immediate else _CHUNK_WORK_OF_DEVICE
        n = max(1, min(FLUSH_EVERY, int(most / work), self.data.n_samples // n_rows))
        if n_rows < self.n_rows:  # the last batch of an epoch
            n = 1
        x = self.data.x
        moved: tuple[Array, Array] | None = None
        if isinstance(x, HostRows):
            if x.dtype.itemsize > 8:  # a wider float than devices know
                return None
            n = max(1, min(n, _MOVED_BYTES // (n_rows * x.shape[1] * x.dtype.itemsize)))
        n_numbers = self.optimizer.n_numbers
        # An adapter may try a step: with rows that are there, and not all the same.
        order = host().xp.arange(n * n_rows, dtype=host().xp.int64)
        rows = backend.from_host(order.copy())
        numbers = backend.empty((n, n_numbers), policy.parameter)
        values = backend.empty((n,), policy.accumulate)
        self.objective = self.objectives[n_rows]  # its buffers are made outside of a step

        def step(i: int) -> None:
            nonlocal moved
            if moved is None and isinstance(x, HostRows):
                samples = backend.empty((n * n_rows, x.shape[1]), x.dtype.name)
                take_rows(backend, x, rows, samples, order)
                moved = samples, backend.from_host(order)
            part = slice(i * n_rows, (i + 1) * n_rows)
            here = moved and (moved[0], moved[1][part])
            value = self.forward(rows[part], 0, i, here)
            self.backend.copy(value, values[i, ...])
            if not backend.immediate or self.backend.finite(value):
                self._backward([numbers[i, j, ...] for j in range(n_numbers)])

        replay = self.backend.capture(step, n, self.n_steps, work)
        return None if replay is None else _Captured(
            replay, rows, numbers, values, moved and moved[0]
        )  # fmt: skip

    def _made_of_primitives(self) -> bool:
        """Whether all of a step is the library's own, which calls nothing but primitives.

        A class of the user's may bring rules, but no Python that runs in a step.
        """
        loss, layers = type(self.data.chosen_loss), self.network.dense
        own: list[Any] = [type(self.optimizer)]
        own += [getattr(loss, name) for name in ("encode", "smooth", "evaluate", "params")]
        for activation in {type(layer.activation) for layer in layers}:
            own += [activation.forward, activation.backward, activation.params.fget]
        foreign = [x for x in own if not getattr(x, "__module__", "").startswith("xpmlp.")]
        if foreign:
            _log.info("steps are run one primitive at a time: %r is not xpmlp's", foreign[0])
        return not foreign

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_captured": {}}  # it holds threads and addresses

    def first_non_finite(self) -> str:
        """Where NaN or infinity first appears in the newest forward pass, in words."""
        xp = self.network.backend.xp

        def broken(*arrays: Array | None) -> bool:
            return any(x is not None and not _all_finite(xp, x) for x in arrays)

        place = ""
        stages = self.objective.program.stages
        for index, (layer, stage) in enumerate(zip(self.network.layers, stages, strict=True)):
            place = f"layers[{index}], {layer}"
            if isinstance(stage, DenseStage) and broken(stage.w, stage.b):
                return f"the first non-finite values are in the parameters of {place}"
            if broken(stage.a):
                return f"the first non-finite values are in the output of {place}"
        return f"all layers are finite, but the loss of the output of {place} is not"


def _all_finite(xp: Any, x: Array) -> bool:
    return bool(xp.all(xp.isfinite(x)))
