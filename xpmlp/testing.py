"""Checks of gradients and of adapters, for this library's parts and for yours.

``check_gradients`` compares derivatives with finite differences, ``check_backend`` an adapter's
primitives with their definition. Both raise AssertionError with the place and the values.
``xpmlp.verify`` compares whole runs, ``xpmlp.conformance`` makes pytest tests of all of it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from xpmlp import rules
from xpmlp.activations import Activation
from xpmlp.backends import ReferenceBackend, available_backends, backend_class, get_backend, host
from xpmlp.data import HostRows
from xpmlp.layers import Dense, Dropout, Layer
from xpmlp.losses import LogLoss, Loss
from xpmlp.network import Network
from xpmlp.optimizers import Adam
from xpmlp.rng import Stream, stream
from xpmlp.step import Dataset, TrainingStep
from xpmlp.typing import Array, Backend, Rule

# How far one primitive may be from its definition in float64, relative to the largest value.
TOLERANCES = {"float64": 1e-13, "float32": 2e-6}
# Tensor cores add up less exactly than float32 does elsewhere.
SUMS = {"ieee": 0.0, "bfloat16": 1e-5}


def assert_close(actual: Any, desired: Any, tolerance: float, what: str) -> None:
    """Raise unless two arrays agree in shape and dtype, and in values to a relative tolerance.

    Parameters
    ----------
    actual, desired : NumPy array
    tolerance : float
        Of the largest difference, relative to the largest finite magnitude in `desired`; 0 asks
        for the same bits. NaN and infinities must be in the same places.
    what : str
        Named in the message.

    Raises
    ------
    AssertionError
        With the worst place and its values.
    """
    if actual.shape != desired.shape or actual.dtype != desired.dtype:
        raise AssertionError(
            f"{what}: got {actual.dtype} of shape {actual.shape}, expected {desired.dtype} of "
            f"shape {desired.shape}"
        )
    place, difference = worst_place(actual, desired)
    if tolerance == 0.0 and not difference:
        xp = host().xp
        signs = xp.signbit(actual) != xp.signbit(desired)
        if (signs & (actual == desired)).any():  # zeros of two signs are equal, and not the same
            place = tuple(int(i) for i in xp.argwhere(signs)[0])
            difference = math.inf
    if not difference <= tolerance:
        raise AssertionError(
            f"{what}{list(place)} is {actual[place]!r}, expected {desired[place]!r}: a relative "
            f"difference of {difference:.1e}, allowed {tolerance:.1e}"
        )


def worst_place(actual: Any, desired: Any, floor: float = 0.0) -> tuple[tuple[int, ...], float]:
    """The place of the largest difference, and its size relative to the largest magnitude.

    Magnitudes below `floor` count as that. The size is infinite where one value is finite and
    the other is not, or two values that are not finite differ.
    """
    xp = host().xp
    if actual.size == 0:
        return (), 0.0
    with host().context():
        a, b = actual.astype("float64"), desired.astype("float64")
        same = (a == b) | (xp.isnan(a) & xp.isnan(b))
        gap = xp.where(same, 0.0, xp.abs(a - b))
        gap = xp.where(xp.isfinite(gap), gap, math.inf)
        finite = xp.abs(b[xp.isfinite(b)])
        scale = max(floor, float(finite.max()) if finite.size else 0.0) or 1.0
    place = tuple(int(i) for i in xp.unravel_index(xp.argmax(gap), gap.shape))
    return place, float(gap[place]) / scale


# --- Gradients ----------------------------------------------------------------------------------


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
        An activation is tried in a small network, a loss at the end of one; X, y and `loss` can
        then be left out. The differences are those of the same network in float64 on the CPU,
        whatever its dtype and device.
    X : array-like of shape (n_samples, n_features)
    y : array-like
        See the loss.
    loss : str or Loss, default "squared_error"
    tolerance : float, default 1e-5
        Largest difference allowed, relative to the largest element of the gradient.
    **options
        Further arguments of :meth:`xpmlp.Network.loss_and_grad`.

    Returns
    -------
    float
        The largest relative difference.

    Raises
    ------
    AssertionError
        If the gradient is wrong, with the layer, the place and both values.
    """
    rng = host().generator(stream(0, "check"))
    if isinstance(subject, Network):
        network = subject
    else:
        activation = subject if isinstance(subject, Activation) else "tanh"
        network = Network(4, [Dense(5, activation), Dense(3, "sigmoid")], device="cpu", seed=1)
        X, y = rng.standard_normal((6, 4)), rng.random((6, 3))
        loss = subject if isinstance(subject, Loss) else loss
    expected = finite_differences(network, X, y, loss, **options)
    gradient = network.loss_and_grad(X, y, loss, **options)[1].flat
    return compare_gradient(network, gradient, expected, tolerance)


def finite_differences(network: Network, X: Any, y: Any, loss: str | Loss, **options: Any) -> Any:
    """Central differences of the objective by each parameter, in float64 on the host.

    Parameters
    ----------
    network : Network
    X, y, loss, **options
        See :meth:`xpmlp.Network.loss_and_grad`.

    Returns
    -------
    NumPy array of shape (n_parameters,)
    """
    start = network.backend.to_host(network.parameters).astype("float64")
    twin = Network(
        network.n_features, network.layers, backend=host(), seed=network.seed, parameters=start
    )
    found = start * 0.0
    for index in range(start.size):
        step = 1e-6 * max(1.0, abs(float(start[index])))
        values = []
        for sign in (1.0, -1.0):
            twin.parameters[...] = start
            twin.parameters[index] += sign * step
            values.append(twin.loss_and_grad(X, y, loss, **options)[0])
        found[index] = (values[0] - values[1]) / (2.0 * step)
    return found


def compare_gradient(
    network: Network, gradient: Array, expected: Any, tolerance: float = 1e-5
) -> float:
    """The largest relative difference of a flat gradient; see :func:`check_gradients`."""
    gradient = network.backend.to_host(gradient)
    tolerance = tolerance if network.dtype == "float64" else max(tolerance, 1e-4)
    (place,), difference = worst_place(gradient, expected, floor=1e-4)
    if not difference <= tolerance:
        raise AssertionError(
            f"the gradient of {parameter_names(network)[place]} is {gradient[place]:.9g}, expected "
            f"{expected[place]:.9g}: a relative difference of {difference:.1e}, allowed "
            f"{tolerance:.1e}"
        )
    return difference


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


# --- Adapters -----------------------------------------------------------------------------------


def check_backend(backend: Backend, rules: Iterable[Rule] = ()) -> dict[str, float]:
    """Compare an adapter's primitives with their definition, in every dtype it trains in.

    Parameters
    ----------
    backend : Backend
    rules : iterable of callable
        Rules of your own, ``rule(xp, *operands)``, checked besides the library's.

    Returns
    -------
    dict of str to float
        The largest relative difference for each primitive.

    Raises
    ------
    AssertionError
        At the first primitive that is wrong, with the place and the values.
    TypeError
        If `backend` is no adapter.
    """
    if not hasattr(backend, "elementwise") or isinstance(backend, type):
        raise TypeError(f"backend must be an opened adapter, as of get_backend, got {backend!r}")
    found: dict[str, float] = {}
    with backend.context():
        for policy in backend.policies:
            dtype = policy.parameter
            for name, check in _PRIMITIVES.items():
                found[name] = max(found.get(name, 0.0), check(backend, dtype))
            check_sums(backend, dtype, policy.accumulate)
            for rule in [*library_rules(), *rules]:
                _check_rule(backend, dtype, rule)
            check_capture(backend, dtype)
        check_uniforms(backend)
    return found


def library_rules() -> list[Rule]:
    """All rules of the library."""
    functions = inspect.getmembers(rules, inspect.isfunction)
    return [function for _, function in functions]


def _normal(shape: tuple[int, ...], dtype: str, number: int = 0) -> Any:
    drawn = host().generator(stream(number, "check")).standard_normal(shape)
    return drawn.astype(dtype)


def _out(backend: Backend, shape: tuple[int, ...], dtype: str) -> Array:
    """A buffer full of what must be overwritten."""
    out = backend.empty(shape, dtype)
    backend.copy(backend.from_host(host().xp.full(shape, 99.0)), out)
    return out


def _check(
    backend: Backend, what: str, out: Array, expected: Any, dtype: str, least: float = 0.0
) -> float:
    actual, desired = backend.to_host(out), expected.astype(dtype)
    tolerance = max(least, TOLERANCES[dtype])
    assert_close(actual, desired, tolerance, f"{backend!r}, {dtype}, {what}")
    return worst_place(actual, desired)[1]


_Check = Callable[[Backend, str], float]
_PRIMITIVES: dict[str, _Check] = {}


def _primitive(check: _Check) -> _Check:
    _PRIMITIVES[check.__name__.removeprefix("_check_")] = check
    return check


@_primitive
def _check_matmul(backend: Backend, dtype: str) -> float:
    worst = 0.0
    for shape in ((1, 1, 1), (3, 5, 4), (64, 33, 17), (2, 3, 5, 4), (2, 3, 4, 1, 6)):
        *leading, n, k, m = shape
        a, b = _normal((*leading, n, k), dtype), _normal((*leading, k, m), dtype, 1)
        on = {"a": backend.from_host(a), "b": backend.from_host(b)}
        turned = {"a": backend.from_host(a.mT.copy()).mT, "b": backend.from_host(b.mT.copy()).mT}
        for precision in ("ieee", "bfloat16"):  # how TF32 rounds is the hardware's business
            if precision not in backend.precisions:
                continue
            if precision == "bfloat16" and dtype == "float32":
                a, b = round_to_bfloat16(a), round_to_bfloat16(b)
            expected = a.astype("float64") @ b.astype("float64")
            for left, right, kind in (
                (on["a"], on["b"], "a @ b"),
                (turned["a"], on["b"], "a.mT.mT @ b"),
                (on["a"], turned["b"], "a @ b.mT.mT"),
                (turned["a"], turned["b"], "a.mT.mT @ b.mT.mT"),
            ):
                out = _out(backend, (*leading, n, m), dtype)
                backend.with_precision(precision).matmul(left, right, out)
                what = f"matmul {kind} of {a.shape} and {b.shape} in {precision}"
                worst = max(worst, _check(backend, what, out, expected, dtype, SUMS[precision]))
    a, b = _with_specials(_normal((9, 5), dtype)), _normal((5, 4), dtype, 1)
    with host().context():
        expected = a.astype("float64") @ b.astype("float64")
    out = _out(backend, (9, 4), dtype)
    backend.matmul(backend.from_host(a), backend.from_host(b), out)
    return max(worst, _check(backend, "matmul of NaN and infinities", out, expected, dtype))


def round_to_bfloat16(x: Any) -> Any:
    """The NumPy array `x` of float32 rounded to 8 significant bits, ties to even."""
    xp = host().xp
    with host().context():
        wide = x.astype("float64")
        # The distance of neighbours; that of subnormals is the same for all.
        step = 2.0 ** (xp.maximum(xp.frexp(wide)[1], -125) - 8.0)
        return (xp.rint(wide / step) * step).astype("float32")


def _with_specials(x: Any) -> Any:
    """The matrix with a NaN, an infinity of each sign, and both in one row."""
    x[0, 0], x[1, 1], x[2, 2] = math.nan, math.inf, -math.inf
    x[3, 0], x[3, 1] = math.inf, -math.inf
    return x


def _reduction(name: str, of: Any) -> None:
    def check(backend: Backend, dtype: str) -> float:
        worst = 0.0
        arrays = {
            f"of {shape}": _normal(shape, dtype)
            for shape in ((1, 1), (1, 7), (9, 1), (200, 31), (3, 9, 5), (2, 1, 4, 3))
        }
        arrays["of NaN and infinities"] = _with_specials(_normal((9, 5), dtype))
        for what, x in arrays.items():
            with host().context():
                expected = of(x.astype("float64"))
            out = _out(backend, expected.shape, dtype)
            getattr(backend, name)(backend.from_host(x), out)
            worst = max(worst, _check(backend, f"{name} {what}", out, expected, dtype))
        return worst

    _PRIMITIVES[name] = check


_reduction("sum_columns", lambda x: x.sum(axis=-2))
_reduction("sum_rows", lambda x: x.sum(axis=-1, keepdims=True))
_reduction("max_rows", lambda x: x.max(axis=-1, keepdims=True))


@_primitive
def _check_copy(backend: Backend, dtype: str) -> float:
    worst = 0.0
    for kind in ("bool", "uint8", "int32", "int64", "float32", "float64"):
        x = (_normal((5, 3), "float64") * 9.0).astype("int8").astype(kind)
        out = _out(backend, (5, 3), dtype)
        backend.copy(backend.from_host(x), out)
        worst = max(worst, _check(backend, f"copy from {kind}", out, x, dtype))
        backend.copy(backend.from_host(x.T.copy()).mT, out)
        worst = max(worst, _check(backend, f"copy of a turned {kind}", out, x, dtype))
    return worst


@_primitive
def _check_take_rows(backend: Backend, dtype: str) -> float:
    worst = 0.0
    rows = host().xp.asarray([4, 0, 4, 2])
    for kind in ("uint8", "int64", "float32", "float64"):
        x = (_normal((5, 3), "float64") * 9.0 + 30.0).astype(kind)
        out = _out(backend, (4, 3), dtype)
        backend.take_rows(backend.from_host(x), backend.from_host(rows), out)
        worst = max(worst, _check(backend, f"take_rows from {kind}", out, x[rows], dtype))
    return worst


@_primitive
def _check_load_rows(backend: Backend, dtype: str) -> float:
    worst = 0.0
    for kind in ("uint8", "float32", "float64"):
        x = (_normal((9, 3), "float64") * 9.0 + 30.0).astype(kind)
        # One after the other, as batches are: an adapter may move some at once.
        chosen = [slice(0, 4), slice(5, 9), host().xp.asarray([4, 0, 4, 2]), slice(8, 9)]
        outs = [_out(backend, x[rows].shape, dtype) for rows in chosen]
        for rows, out in zip(chosen, outs, strict=True):
            backend.load_rows(HostRows(x), rows, out)
        for rows, out in zip(chosen, outs, strict=True):
            worst = max(worst, _check(backend, f"load_rows from {kind}", out, x[rows], dtype))
    return worst


@_primitive
def _check_softmax_log_loss(backend: Backend, dtype: str) -> float:
    worst = 0.0
    for n, k in ((1, 2), (9, 3), (50, 70)):
        z, y = _normal((n, k), dtype) * 200.0, abs(_normal((n, k), dtype, 1))
        shifted = z.astype("float64") - z.max(axis=1, keepdims=True)
        total = host().xp.exp(shifted).sum(axis=1, keepdims=True)
        expected = (
            y * (host().xp.log(total) - shifted),
            y.sum(axis=1, keepdims=True) * host().xp.exp(shifted) / total - y,
        )
        outs = _out(backend, (n, k), dtype), _out(backend, (n, k), dtype)
        one, two, three = (_out(backend, (n, 1), dtype) for _ in range(3))
        on_device = backend.from_host(z), backend.from_host(y)
        backend.softmax_log_loss(*on_device, *outs, (one, two, three))
        for out, values in zip(outs, expected, strict=True):
            worst = max(worst, _check(backend, f"softmax_log_loss of {(n, k)}", out, values, dtype))
    return worst


def check_capture(backend: Backend, dtype: str) -> None:
    """Check that steps which an adapter has captured are the steps run one primitive at a time.

    Raises
    ------
    AssertionError
        If a parameter or a loss differs by more than rounding.
    """
    xp = host().xp
    X, y, weight = _normal((30, 6), dtype), xp.arange(30) % 3, 0.5 + abs(_normal((30,), dtype))
    layers: list[Layer] = [Dense(40, "tanh"), Dropout(0.3), Dense(5, "relu"), Dense(3, "softmax")]
    ends = []
    for captures in (False, True):
        network = Network(6, layers, backend=backend, dtype=dtype)
        data = Dataset(network, X, y, weight, LogLoss())
        # So many steps to come that capturing them pays.
        step = TrainingStep(network, Adam(), 4, data, 0.1, 0.01, 0.5, n_steps=10**9)
        losses = backend.zeros((24,), network.policy.accumulate)
        for epoch in range(3):
            order = backend.from_host((xp.arange(30) * 7 + epoch) % 30)
            batch = 0
            while batch < 8:
                n_rows = 4 if batch < 7 else 2
                rows, done = order[4 * batch :], 0
                if captures:
                    done = step.replay(rows, n_rows, epoch, batch, losses[8 * epoch :])
                if not done:
                    losses[8 * epoch + batch] = step.forward(rows[:n_rows], epoch, batch)
                    step.backward()
                batch += done or 1
        ends.append([backend.to_host(x).copy() for x in (losses, network.parameters)])
    for name, one, other in zip(("the losses", "the parameters"), *ends, strict=True):
        tolerance = 1e3 * TOLERANCES[dtype]  # rounding grows from step to step
        assert_close(other, one, tolerance, f"{backend!r}, {dtype}, {name} of captured steps")


def check_sums(backend: Backend, dtype: str, accumulate: str) -> None:
    """Check that sums of `dtype` keep the digits that `accumulate` promises.

    Raises
    ------
    AssertionError
        At the first that does not.
    """
    allowed = 1e-10 if accumulate == "float64" else 1e-3
    for shape in ((300_001,), (1,), (7, 3), (1001, 130)):
        x = host().xp.full(shape, 0.1, dtype=dtype)
        exact = float(x.flat[0])
        for name, expected in (("total", x.size * exact), ("total_squares", x.size * exact**2)):
            out = backend.empty((), accumulate)
            getattr(backend, name)(backend.from_host(x), out)
            value = backend.read(out)
            if not abs(value / expected - 1.0) <= allowed:
                raise AssertionError(
                    f"{backend!r}, {dtype}, {name} of {shape} accumulated in {accumulate}: got "
                    f"{value!r}, expected {expected!r}"
                )


def _check_rule(backend: Backend, dtype: str, rule: Rule) -> None:
    """A rule on arrays of one shape, with a number for its last operand, and on values of any sign.

    It is compared with NumPy in the same dtype, so that cancellation is no difference.
    """
    n = len(inspect.signature(rule).parameters) - 1
    edges = [0.0, -0.0, 1.0, -1.0, 1e3, -1e3, math.inf, -math.inf, math.nan, 1e-3, -2.5, 0.5]
    shapes = ((3, 4), False), ((3, 4), True), ((2, 3, 4), False), ((150, 250), False)
    for shape, signed in shapes:
        arrays = [0.25 + abs(_normal(shape, dtype, i)) / 4.0 for i in range(n)]
        if signed:
            turned = [edges[i:] + edges[:i] for i in range(n)]
            arrays = [host().xp.asarray(x, dtype=dtype).reshape(shape) for x in turned]
        for numbers in {0} if signed else {0, int(n > 2)}:
            operands = [
                float(array.flat[0]) if i >= n - numbers else array
                for i, array in enumerate(arrays)
            ]
            with host().context():
                results = rule(host().functions, *operands)
            results = results if isinstance(results, tuple) else (results,)
            outs = tuple(_out(backend, shape, dtype) for _ in results)
            on_device = [x if isinstance(x, float) else backend.from_host(x) for x in operands]
            backend.elementwise(rule)(outs, *on_device)
            for out, result in zip(outs, results, strict=True):
                expected = host().xp.broadcast_to(result, shape)
                _check(backend, f"the rule {rule.__name__}", out, expected, dtype)


def check_uniforms(backend: Backend) -> None:
    """Compare ``fill_uniform`` with NumPy's generator at the same address, to the bit.

    Raises
    ------
    AssertionError
        At the first that differs.
    """
    for shape in ((1, 1), (7, 3), (100, 41)):
        for address in (
            stream(3, "dropout"),
            stream(3, "dropout", epoch=2, batch=5, layer=1),
            stream(8, "dropout", epoch=1, batch=1, layer=3),
            stream(8, "dropout", epoch=2**33, batch=2**40, layer=17),
            Stream(stream(8, "dropout").key, 2**256 - 3),  # the counter overflows
            Stream(stream(8, "dropout").key, 2**128 - 2),  # a carry into its third word
        ):
            out, expected = _out(backend, shape, "float32"), host().empty(shape, "float32")
            backend.fill_uniform(out, address)
            host().fill_uniform(expected, address)
            what = f"{backend!r}, fill_uniform of {shape}"
            assert_close(backend.to_host(out), expected, 0.0, what)


# --- What is on this machine --------------------------------------------------------------------


def participants() -> dict[str, Backend]:
    """Every usable adapter on each of its devices, and array-api-strict where it is installed.

    Raises
    ------
    BackendUnavailableError
        If an adapter says that it is usable and cannot be opened.
    """
    found: dict[str, Backend] = {}
    for name, state in available_backends().items():
        if state == "usable":
            for device in backend_class(name).devices():
                found[f"{name}:{device}"] = get_backend(device, name, fallback=False)
    if find_spec("array_api_strict"):
        found["array-api-strict"] = strict_backend()
    return dict(sorted(found.items(), key=lambda item: item[0] != "numpy:cpu"))


def reference_of(backend: Backend) -> Backend:
    """An adapter's library and device with none of the adapter's own primitives."""

    class Reference(ReferenceBackend):
        name = f"{backend.name} by reference"
        policies = backend.policies

        @classmethod
        def version(cls) -> str:
            return f"{backend.version()}, array API functions alone"

        def context(self) -> AbstractContextManager[Any]:
            return backend.context()

        def from_host(self, x: Any) -> Array:
            return backend.from_host(x)

        def to_host(self, x: Array) -> Any:
            return backend.to_host(x)

    of: Any = backend
    return Reference(backend.xp, backend.device, of.xp_device)


def strict_backend() -> Backend:
    """array-api-strict on its second device.

    Anything outside the standard, and any stray array of the host, raises there.
    """
    strict: Any = import_module("array_api_strict")

    class StrictBackend(ReferenceBackend):
        name = "array-api-strict"
        library = "array_api_strict"

        @classmethod
        def version(cls) -> str:
            return f"array-api-strict {strict.__version__}"

        @classmethod
        def devices(cls) -> tuple[str, ...]:
            return ("device1",)

        @classmethod
        def accepts(cls, device: str) -> bool:
            return device == "device1"

        def context(self) -> AbstractContextManager[Any]:
            return host().context()  # it computes with NumPy

        def to_host(self, x: Array) -> Any:
            on_cpu: Any = x
            return host().from_host(on_cpu.to_device(strict.Device("CPU_DEVICE")))

    return StrictBackend(strict, "device1", strict.Device("device1"))


_CROSSING = ("to_host", "from_host", "read")


@contextmanager
def counted_transfers(backend: Any) -> Iterator[list[str]]:
    """Collect the adapter's ``to_host``, ``from_host`` and ``read`` calls inside the block.

    Uniforms that an adapter receives from the host are left out.
    """
    calls: list[str] = []
    original = {name: getattr(backend, name) for name in (*_CROSSING, "fill_uniform")}

    def counted(name: str) -> Callable[[Any], Any]:
        def call(x: Any) -> Any:
            calls.append(name)
            return original[name](x)

        return call

    def fill_uniform(*arguments: Any) -> None:
        before = len(calls)
        original["fill_uniform"](*arguments)
        del calls[before:]

    for name in _CROSSING:
        setattr(backend, name, counted(name))
    backend.fill_uniform = fill_uniform
    try:
        yield calls
    finally:
        for name in original:
            delattr(backend, name)
