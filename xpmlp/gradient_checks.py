"""Gradients against finite differences: of a network, an activation or a loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from xpmlp.activations import ACTIVATIONS, Activation
from xpmlp.backends import host
from xpmlp.comparing import worst_place
from xpmlp.layers import Dense
from xpmlp.losses import Loss
from xpmlp.network import Network
from xpmlp.rng import stream
from xpmlp.typing import Array

# Pre-activations are tried around these, so that every branch of a formula is entered.
_AROUND = (-10.0, -7.0, -4.0, -2.0, 0.0, 2.0, 4.0, 7.0, 10.0)
# The central differences of an objective J have an error of about EPS**(2/3) |J| at this step.
_EPS = 2.0**-52
_STEP = _EPS ** (1 / 3)


def check_gradients(
    subject: Network | Activation | Loss,
    X: Any = None,
    y: Any = None,
    loss: str | Loss = "squared_error",
    *,
    tolerance: float = 1e-5,
    **options: Any,
) -> float:
    """Compare a gradient with central differences of the objective.

    Parameters
    ----------
    subject : Network, Activation or Loss
        An activation is tried in small networks whose pre-activations lie between about -12 and
        12; a loss at the end of such networks, of one for each activation that it is computed as
        one with too, on targets of that size as far as its `target_range` allows. X and y are
        then left out. The differences are those of the same network in float64 on the CPU,
        whatever its dtype and device.
    X : array-like of shape (n_samples, n_features)
    y : array-like
        See the loss.
    loss : str or Loss, default "squared_error"
    tolerance : float, default 1e-5
        Largest difference allowed, relative to the largest element of the gradient by the same
        weight matrix or bias. At least 1e-4 in float32.
    **options
        Further arguments of :meth:`xpmlp.Network.loss_and_grad`.

    Returns
    -------
    float
        The largest relative difference. What finite differences cannot tell from zero counts as
        `tolerance`.

    Raises
    ------
    AssertionError
        If the gradient is wrong, with the layer, the place and both values.
    """
    if isinstance(subject, Network):
        return _check(subject, X, y, loss, tolerance, options)
    trials = (
        _around_activations(subject)
        if isinstance(subject, Activation)
        else _around_predictions(subject)
    )
    if isinstance(subject, Loss):
        loss = subject
    return max(
        _check(network, X, y, loss, tolerance, options)
        for network, X, y in trials
        if math.isfinite(network.loss_and_grad(X, y, loss, **options)[0])
        or _must_be_finite(network)
    )


def _check(
    network: Network, X: Any, y: Any, loss: str | Loss, tolerance: float, options: dict[str, Any]
) -> float:
    expected = finite_differences(network, X, y, loss, **options)
    gradient = network.loss_and_grad(X, y, loss, **options)[1].flat
    return compare_gradient(network, gradient, expected, tolerance)


def _must_be_finite(network: Network) -> bool:
    """Whether every loss has a value there: one of positive numbers has none of negative ones."""
    return network.output_activation.name != "identity"


_Trial = tuple[Network, Any, Any]


def _around_activations(activation: Activation) -> Iterator[_Trial]:
    rng = host().generator(stream(0, "check"))
    for center in _AROUND:
        network = Network(2, [Dense(5, activation), Dense(2)], device="cpu", seed=1)
        _shift(network, 0, center)
        yield network, rng.standard_normal((6, 2)), rng.standard_normal((6, 2))


def _shift(network: Network, layer: int, center: float) -> None:
    """Put the pre-activations of a layer around a number."""
    biases: Any = network.biases
    biases[layer][...] = center


def _around_predictions(loss: Loss) -> Iterator[_Trial]:
    """Networks for a loss, with targets all over its range and with targets near predictions."""
    rng = host().generator(stream(0, "check"))
    low, high = (max(-10.0, min(10.0, end)) for end in loss.target_range)
    outputs = ["sigmoid", "softplus" if low >= 0.0 else "identity"]
    outputs += [name for name in ACTIVATIONS if loss.takes_logits(name) and name not in outputs]
    for output in outputs:
        for center in _AROUND[::2]:
            network = Network(2, [Dense(2, "tanh"), Dense(3, output)], device="cpu", seed=1)
            _shift(network, 1, center)
            X = rng.standard_normal((6, 2))
            yield network, X, low + (high - low) * rng.random((6, 3))
            # Losses may change at any distance from the target: it is of any order of magnitude.
            distance = 10.0 ** rng.uniform(-3.0, 0.5, (6, 3)) * rng.choice([-1.0, 1.0], (6, 3))
            yield network, X, (network.predict(X) + distance).clip(low, high)


class Differences(NamedTuple):
    """What finite differences tell of a gradient.

    Attributes
    ----------
    values, errors : NumPy array of shape (n_parameters,)
        Errors are an estimate: by how much the differences of two steps differ.
    objective : float
    """

    values: Any
    errors: Any
    objective: float


def finite_differences(
    network: Network, X: Any, y: Any, loss: str | Loss, **options: Any
) -> Differences:
    """Central differences of the objective by each parameter, in float64 on the host.

    Parameters
    ----------
    network : Network
    X, y, loss, **options
        See :meth:`xpmlp.Network.loss_and_grad`.

    Returns
    -------
    Differences
    """
    start = network.backend.to_host(network.parameters).astype("float64")
    twin = Network(
        network.n_features, network.layers, backend=host(), seed=network.seed, parameters=start
    )

    def at(index: int, offset: float) -> float:
        twin.parameters[...] = start
        twin.parameters[index] += offset
        return float(twin.loss_and_grad(X, y, loss, **options)[0])

    values, errors = start * 0.0, start * 0.0
    for index in range(start.size):
        step = _STEP * max(1.0, abs(float(start[index])))
        near, far = (
            (at(index, size) - at(index, -size)) / (2.0 * size) for size in (step, 2.0 * step)
        )
        values[index], errors[index] = near, abs(far - near)
    return Differences(values, errors, at(0, 0.0))


def compare_gradient(
    network: Network, gradient: Array, expected: Differences, tolerance: float = 1e-5
) -> float:
    """The largest relative difference of a flat gradient; see :func:`check_gradients`."""
    gradient = network.backend.to_host(gradient)
    rounding = _EPS ** (2 / 3) * abs(expected.objective)
    if network.dtype != "float64":
        tolerance = max(tolerance, 1e-4)
        largest = float(abs(expected.values).max(initial=1.0))
        rounding = 1e-7 * max(abs(expected.objective), largest)
    worst = 0.0
    for part in _parts(network):
        # What is as small as the error of the differences is as large as that allows.
        unknown = rounding + 4.0 * float(expected.errors[part].max())
        (place,), difference = worst_place(
            gradient[part], expected.values[part], floor=unknown / tolerance
        )
        place += part.start
        if not difference <= tolerance:
            raise AssertionError(
                f"the gradient of {parameter_names(network)[place]} is {gradient[place]:.9g}, "
                f"expected {expected.values[place]:.9g}: a relative difference of "
                f"{difference:.1e}, allowed {tolerance:.1e}"
            )
        worst = max(worst, difference)
    return worst


def _parts(network: Network) -> Iterator[slice]:
    """Where each weight matrix and bias stands in the flat vector of parameters."""
    weights, biases = network.views(network.parameters)
    start = 0
    for array in (*weights, *biases):
        size = 0 if array is None else math.prod(array.shape)
        if size:
            yield slice(start, start + size)
        start += size


def parameter_names(network: Network) -> list[str]:
    """A name for each element of a network's parameters, such as ``weights[0][2, 1]``."""
    weights, biases = network.views(network.parameters)
    layers = [str(layer) for layer in network.dense]
    names = []
    for kind, arrays in (("weights", weights), ("biases", biases)):
        for index, array in enumerate(arrays):
            for place in host().xp.ndindex(*(array.shape if array is not None else (0,))):
                names.append(f"{kind}[{index}]{list(place)} of {layers[index]}")
    return names
