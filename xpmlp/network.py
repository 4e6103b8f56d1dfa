"""The multilayer perceptron: layers over one flat parameter vector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from xpmlp.activations import Activation
from xpmlp.backends import DTypePolicy, dtype_name, get_backend, offered, reopen
from xpmlp.data import (
    HostRows,
    as_matrix,
    as_target,
    as_vector,
    as_weight,
    blocks,
    copy_rows,
    like,
)
from xpmlp.errors import check_flag, check_number
from xpmlp.layers import Dense, DenseStage, Dropout, Layer
from xpmlp.losses import LOSSES, Loss
from xpmlp.names import resolve
from xpmlp.program import Arena, Objective, Program
from xpmlp.rng import check_seed, stream
from xpmlp.summary import summary_table
from xpmlp.typing import Array, Backend

# Elements of the widest buffer when predicting: memory is bounded by it, not by the rows of X.
_PREDICT_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Gradient:
    """The gradient of the objective.

    Attributes
    ----------
    flat : array of shape (n_parameters,)
        In the order of ``Network.parameters``.
    weights : tuple of array of shape (n_in, n_out)
        Views of `flat`.
    biases : tuple of array of shape (n_out,), or None where a layer has no bias
        Views of `flat`.
    inputs : array of shape (n_samples, n_features) or None
        With respect to X, where it was computed.
    """

    flat: Array
    weights: tuple[Array, ...]
    biases: tuple[Array | None, ...]
    inputs: Array | None


@dataclass(frozen=True)
class LayerValues:
    """What one layer computed: `z` and `a` of shape ``(n_samples, n_out)``."""

    layer: Dense
    z: Array
    a: Array


class Network:
    """A multilayer perceptron on one device.

    Parameters
    ----------
    n_features : int
        Columns of X.
    layers : sequence of Dense and Dropout
        From the input to the output; the last is Dense.
    device : str, default "auto"
        See :func:`xpmlp.get_backend`.
    backend : str or Backend, optional
        An adapter by name, or an opened one.
    fallback : bool, default True
        Whether an unusable device gives way to the CPU with a warning.
    dtype : {"float64", "float32"}, default "float64"
        Of parameters and computation, the same on every device. float32 takes half the memory
        and, on most GPUs, a small part of the time.
    precision : str, optional
        How the arithmetic is done, of those in the adapter's ``precisions``. Default: as the
        opened adapter does, otherwise ``"ieee"``, IEEE 754 in `dtype`. With ``"tf32"`` and
        ``"bfloat16"`` matrix products of float32 round their operands, to 11 and to 8 significant
        bits, for the tensor cores of NVIDIA's GPUs from Ampere on. Sums, parameters and all else
        stay float32. PyTorch's adapter offers ``"bfloat16"`` on every device, for trying it out.
        Where the network comes to a device that does not offer it, by a fallback, a file or a
        pickle, that computes by IEEE 754; `precision` still says what was asked for.
    seed : int, optional
        Of initial weights, shuffles and dropout masks. None draws a fresh one.
    parameters : array-like of shape (n_parameters,), optional
        Initial values, laid out as below. Default: weights drawn by each layer's `init`, biases
        of zero.

    Attributes
    ----------
    parameters : array of shape (n_parameters,)
        All weights, layer by layer, then all biases. Writing into it changes the network.
    weights : tuple of array of shape (n_in, n_out)
        Live views of `parameters`: ``network.weights[0][...] = W`` changes the network.
    biases : tuple of array of shape (n_out,), or None where a layer has no bias
        Live views of `parameters`.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type, out of range, or an unknown name.
    BackendUnavailableError
        If the device cannot be used and `fallback` is False.

    Examples
    --------
    >>> from xpmlp import Dense, Network
    >>> network = Network(2, [Dense(3, "tanh"), Dense(1)], device="cpu")
    >>> network.predict([[0.0, 0.0]]).shape
    (1, 1)
    """

    def __init__(
        self,
        n_features: int,
        layers: Sequence[Layer],
        *,
        device: str = "auto",
        backend: str | Backend | None = None,
        fallback: bool = True,
        dtype: str = "float64",
        precision: str | None = None,
        seed: int | None = 0,
        parameters: Any = None,
    ) -> None:
        check_number("n_features", n_features, minimum=1, integer=True)
        self.n_features = int(n_features)
        self.layers = _check_layers(layers)
        self.seed = check_seed(seed)
        check_flag("fallback", fallback)
        adapter = hasattr(backend, "elementwise") and not isinstance(backend, type)
        if not (backend is None or isinstance(backend, str) or adapter):
            raise TypeError(f"backend must be a name, an adapter or None, got {backend!r}")
        if backend is None or isinstance(backend, str):
            self.backend = get_backend(device, backend, fallback)
        elif device in ("auto", backend.device):
            self.backend = backend
        else:
            raise ValueError(f"device={device!r} contradicts backend={backend!r}")
        self.policy = _policy(self.backend, dtype)
        own, named = self.backend.precision, backend if isinstance(backend, str) else None
        self.precision = own if precision is None else precision
        if own not in ("ieee", self.precision):
            raise ValueError(f"precision={precision!r} contradicts backend={backend!r}")
        accepted = device == "auto" or self.backend.accepts(device)
        fell_back = not accepted or named not in (None, self.backend.name)
        known = fell_back and self.precision in OF_FLOAT32
        self.backend = self.backend.with_precision("ieee" if known else self.precision)
        if self.precision in OF_FLOAT32 and self.dtype != "float32":
            raise ValueError(
                f"precision={self.precision!r} rounds products of float32, got dtype={self.dtype!r}"
            )

        dense = self.dense = [layer for layer in self.layers if isinstance(layer, Dense)]
        widths = [self.n_features, *(layer.units for layer in dense)]
        self._shapes = list(pairwise(widths))
        self.n_outputs = widths[-1]
        self.n_weights = sum(n_in * n_out for n_in, n_out in self._shapes)
        self.n_parameters = self.n_weights + sum(layer.units for layer in dense if layer.bias)
        with self.backend.context():
            self._parameters = self.backend.zeros((self.n_parameters,), self.policy.parameter)
            self._views = self.views(self._parameters)
        if parameters is not None:
            self.parameters = parameters
            return
        with self.backend.context():
            for index, (layer, weight) in enumerate(zip(dense, self.weights, strict=True)):
                drawn = layer.init.draw(*weight.shape, stream(self.seed, "init", layer=index))
                self.backend.copy(self.backend.from_host(drawn), weight)

    @property
    def parameters(self) -> Array:
        """All weights, layer by layer, then all biases; assigning copies the values in."""
        return self._parameters

    @parameters.setter
    def parameters(self, values: Any) -> None:
        given = as_vector(self.backend, values, "parameters", self.dtype, self.n_parameters)
        with self.backend.context():
            self.backend.copy(given, self._parameters)

    @property
    def weights(self) -> tuple[Array, ...]:
        """Live views of the parameters; ``network.weights[0][...] = W`` writes into one."""
        return self._views[0]

    @property
    def biases(self) -> tuple[Array | None, ...]:
        """Live views of the parameters, None where a layer has no bias."""
        return self._views[1]

    @property
    def dtype(self) -> str:
        """dtype of the parameters."""
        return self.policy.parameter

    @property
    def device(self) -> str:
        """The device the network computes on."""
        return self.backend.device

    @property
    def output_activation(self) -> Activation:
        """Activation of the last layer."""
        activation: Activation = self.dense[-1].activation
        return activation

    def views(self, flat: Array) -> tuple[tuple[Array, ...], tuple[Array | None, ...]]:
        """Weights and biases as views of a vector of the backend laid out like `parameters`."""
        reshape = self.backend.xp.reshape
        weights: list[Array] = []
        biases: list[Array | None] = []
        start = 0
        for shape in self._shapes:
            stop = start + math.prod(shape)
            weights.append(reshape(flat[start:stop], shape, copy=False))
            start = stop
        for layer in self.dense:
            biases.append(flat[start : start + layer.units] if layer.bias else None)
            start += layer.units if layer.bias else 0
        return tuple(weights), tuple(biases)

    def predict(self, X: Any) -> Any:
        """The output for each row of X, without dropout.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        array of shape (n_samples, n_outputs)
            On X's device if that is the network's, otherwise a NumPy array.

        Raises
        ------
        TypeError, ValueError
            If X is not a finite real matrix with ``n_features`` columns.
        """
        x = as_matrix(self.backend, X, "X", self.dtype, self.n_features)
        return like(X, self.backend, self.output(x))

    def output(self, x: Any) -> Array:
        """As :meth:`predict`, for a matrix that :func:`xpmlp.data.as_matrix` has returned."""
        backend, n = self.backend, x.shape[0]
        with backend.context():
            widest = max(self.n_features, *(layer.units for layer in self.dense))
            rows = min(n, max(64, _PREDICT_ELEMENTS // widest))
            arena = Arena(backend, rows, self.policy.compute)
            program = Program(self, arena)
            result = backend.empty((n, self.n_outputs), self.policy.compute)
            for part in blocks(n, rows):
                if part.stop - part.start < rows:
                    program = Program(self, arena.narrowed(part.stop - part.start))
                if isinstance(x, HostRows) or dtype_name(x) != self.policy.compute:
                    copy_rows(backend, x, part, program.x)
                else:
                    program.read(x[part, :])
                program.forward()
                backend.copy(program.output, result[part, :])
            return result

    def forward(self, X: Any, *, step: int = 0) -> Any:
        """The output as in training: with dropout.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        step : int, default 0
            Address of the dropout masks: the same step draws the same masks.

        Returns
        -------
        array of shape (n_samples, n_outputs)
            As :meth:`predict`, which it equals for a network without dropout.
        """
        check_number("step", step, minimum=0, integer=True)
        x = as_matrix(self.backend, X, "X", self.dtype, self.n_features)
        with self.backend.context():
            arena = Arena(self.backend, x.shape[0], self.policy.compute)
            grad = self.backend.empty((self.n_parameters,), self.policy.parameter)
            program = Program(self, arena, grad)
            copy_rows(self.backend, x, slice(None), program.x)
            program.forward(batch=int(step))
            return like(X, self.backend, program.output)

    def trace(self, X: Any) -> list[LayerValues]:
        """Pre-activation and activation of every Dense layer, without dropout.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        list of LayerValues
            On the network's device.
        """
        x = as_matrix(self.backend, X, "X", self.dtype, self.n_features)
        with self.backend.context():
            program = Program(
                self, Arena(self.backend, x.shape[0], self.policy.compute), keep_z=True
            )
            copy_rows(self.backend, x, slice(None), program.x)
            program.forward()
        stages = [stage for stage in program.stages if isinstance(stage, DenseStage)]
        return [
            LayerValues(layer, stage.z, stage.a)
            for layer, stage in zip(self.dense, stages, strict=True)
        ]

    def loss_and_grad(
        self,
        X: Any,
        y: Any,
        loss: str | Loss,
        alpha: float = 0.0,
        reduction: str = "mean",
        sample_weight: Any = None,
        *,
        l1: float = 0.0,
        step: int = 0,
    ) -> tuple[float, Gradient]:
        """Objective and gradient, with dropout as in training.

        ``J = loss + alpha/2 sum W**2 + l1 sum |W|``, over weights but not biases.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples, n_outputs), or (n_samples,)
            See the loss.
        loss : str or Loss
        alpha : float, default 0.0
            L2 penalty.
        reduction : {"mean", "sum"}, default "mean"
            Over samples; every loss sums over outputs.
        sample_weight : array-like of shape (n_samples,), optional
            The mean becomes ``sum w loss / sum w``, the sum ``sum w loss``.
        l1 : float, default 0.0
            L1 penalty.
        step : int, default 0
            Address of the dropout masks.

        Returns
        -------
        value : float
        gradient : Gradient
            New arrays on the network's device.

        Raises
        ------
        TypeError, ValueError
            If an argument is of the wrong type, shape or range, or an unknown name.
        """
        resolved = resolve("loss", loss, LOSSES, Loss)
        check_number("alpha", alpha, minimum=0)
        check_number("l1", l1, minimum=0)
        check_number("step", step, minimum=0, integer=True)
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
        backend, dtype = self.backend, self.dtype
        x = as_matrix(backend, X, "X", dtype, self.n_features)
        n = x.shape[0]
        target, labels = as_target(backend, y, "y", dtype, resolved, n, self.n_outputs)
        weight = None
        if sample_weight is not None:
            weight = as_weight(backend, sample_weight, "sample_weight", dtype, n)
        with backend.context():
            grad = backend.zeros((self.n_parameters,), self.policy.parameter)
            run = Objective(
                self,
                Arena(backend, n, self.policy.compute),
                resolved,
                grad,
                alpha=alpha,
                l1=l1,
                mean=reduction == "mean",
                labels=labels,
                weighted=weight is not None,
                input_gradient=True,
            )
            copy_rows(backend, x, slice(None), run.x)
            backend.copy(target, run.y)
            if weight is not None and run.weight is not None:
                backend.copy(weight, run.weight)
            value = backend.read(run.forward(batch=int(step)))
            run.backward()
        return value, Gradient(grad, *self.views(grad), run.program.dx)

    def summary(self) -> str:
        """A table of the layers: shapes, parameters and bytes."""
        return summary_table(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Network:
        return self.on(self.backend)

    def on(self, backend: Backend) -> Network:
        """A copy of the network on an opened device."""
        values = self.parameters
        if not backend.owns(values):
            values = backend.from_host(self.backend.to_host(values))
        return rebuild(self._built, backend, values)

    @property
    def _built(self) -> tuple[Any, ...]:
        return self.n_features, self.layers, self.dtype, self.precision, self.seed

    def __copy__(self) -> Network:
        return self.__deepcopy__({})

    def __reduce__(self) -> tuple[Any, ...]:
        backend = self.backend
        parameters = backend.to_host(self.parameters)
        return _unpickle, (self._built, (backend.device, backend.name), parameters)

    def __repr__(self) -> str:
        layers = ", ".join(str(layer) for layer in self.layers)
        return (
            f"Network({self.n_features}, [{layers}], dtype={self.dtype!r}, device={self.device!r})"
        )


OF_FLOAT32 = ("tf32", "bfloat16")
"""Precisions that are about products of float32."""


def rebuild(built: tuple[Any, ...], backend: Backend, parameters: Array) -> Network:
    """A network with the given parameters, which may be non-finite."""
    n_features, layers, dtype, precision, seed = built
    if precision in OF_FLOAT32 and dtype != "float32":
        precision = "ieee"
    with backend.context():
        network = Network(
            n_features,
            layers,
            backend=backend.with_precision(offered(precision, backend)),
            dtype=dtype,
            seed=seed,
            parameters=backend.zeros(parameters.shape, dtype),
        )
        backend.copy(parameters, network.parameters)
    network.precision = precision
    return network


def _unpickle(built: tuple[Any, ...], place: tuple[str, str], parameters: Any) -> Network:
    """A network from a pickle; where its device is missing, on the CPU with a warning."""
    backend = reopen(*place)
    return rebuild(built, backend, backend.from_host(parameters))


def _check_layers(layers: Any) -> tuple[Layer, ...]:
    try:
        checked = tuple(layers)
    except TypeError:
        raise TypeError(f"layers must be a sequence of Dense and Dropout, got {layers!r}") from None
    for index, layer in enumerate(checked):
        if not isinstance(layer, Dense | Dropout):
            raise TypeError(f"layers[{index}] must be Dense or Dropout, got {layer!r}")
    if not checked or not isinstance(checked[-1], Dense):
        raise ValueError(f"layers must end with a Dense layer, got {list(checked)!r}")
    return checked


def _policy(backend: Backend, dtype: Any) -> DTypePolicy:
    dtype = getattr(dtype, "name", getattr(dtype, "__name__", dtype))  # numpy.float32, too
    for policy in backend.policies:
        if policy.parameter == dtype:
            return policy
    known = ", ".join(repr(policy.parameter) for policy in backend.policies)
    raise ValueError(f"dtype must be one of {known} on {backend.name}, got {dtype!r}")
