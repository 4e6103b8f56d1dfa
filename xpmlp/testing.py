"""Checks of gradients and of adapters, for this library's parts and for yours.

``check_gradients`` compares derivatives with finite differences, ``check_backend`` an adapter's
primitives with their definition. Both raise AssertionError with the place and the values.
``xpmlp.verify`` compares whole runs, ``xpmlp.conformance`` makes pytest tests of all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from xpmlp.adapter_checks import (
    PRIMITIVES,
    TOLERANCES,
    check_memory,
    check_sums,
    check_uniforms,
    normal,
)
from xpmlp.backends import ReferenceBackend, available_backends, backend_class, get_backend, host
from xpmlp.comparing import assert_close, round_to_bfloat16, worst_place
from xpmlp.gradient_checks import (
    Differences,
    check_gradients,
    compare_gradient,
    finite_differences,
    parameter_names,
)
from xpmlp.layers import Dense, Dropout, Layer
from xpmlp.losses import LogLoss
from xpmlp.network import Network
from xpmlp.optimizers import Adam
from xpmlp.product_checks import SUMS, check_products
from xpmlp.rule_checks import check_rule, library_rules
from xpmlp.step import Dataset, TrainingStep
from xpmlp.typing import Array, Backend, Rule

__all__ = [
    "SUMS",
    "TOLERANCES",
    "Differences",
    "assert_close",
    "check_backend",
    "check_capture",
    "check_gradients",
    "check_sums",
    "check_uniforms",
    "compare_gradient",
    "counted_transfers",
    "finite_differences",
    "library_rules",
    "overrides",
    "parameter_names",
    "participants",
    "reference_of",
    "round_to_bfloat16",
    "strict_backend",
    "worst_place",
]


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
            check_memory(backend, dtype)
            found["matmul"] = max(found.get("matmul", 0.0), check_products(backend, dtype))
            for name, check in PRIMITIVES.items():
                found[name] = max(found.get(name, 0.0), check(backend, dtype))
            check_sums(backend, dtype, policy.accumulate)
            for rule in [*library_rules(), *rules]:
                check_rule(backend, dtype, rule)
            check_capture(backend, dtype)
        check_uniforms(backend)
    return found


def check_capture(backend: Backend, dtype: str) -> None:
    """Check that steps which an adapter has captured are the steps run one primitive at a time.

    Raises
    ------
    AssertionError
        If a parameter or a loss differs by more than rounding.
    """
    xp = host().xp
    # 21 full batches of an epoch, of which an adapter may do many at once, and a smaller one.
    n, n_batches = 43, 22
    X, y, weight = normal((n, 6), dtype), xp.arange(n) % 3, 0.5 + abs(normal((n,), dtype))
    layers: list[Layer] = [Dense(40, "tanh"), Dropout(0.3), Dense(5, "relu"), Dense(3, "softmax")]
    ends = []
    for captures in (False, True):
        network = Network(6, layers, backend=backend, dtype=dtype)
        data = Dataset(network, X, y, weight, LogLoss())
        # So many steps to come that capturing them pays.
        step = TrainingStep(network, Adam(), 2, data, 0.1, 0.01, 0.5, n_steps=10**9)
        losses = backend.zeros((3 * n_batches,), network.policy.accumulate)
        for epoch in range(3):
            order = backend.from_host((xp.arange(n) * 7 + epoch) % n)
            batch = 0
            while batch < n_batches:
                n_rows = 2 if batch < n_batches - 1 else 1
                rows, done = order[2 * batch :], 0
                if captures:
                    some = losses[n_batches * epoch :]
                    done = step.replay(rows, n_rows, epoch, batch, some)
                if not done:
                    value = step.forward(rows[:n_rows], epoch, batch)
                    losses[n_batches * epoch + batch] = value
                    step.backward()
                batch += done or 1
        ends.append([backend.to_host(x).copy() for x in (losses, network.parameters)])
    for name, one, other in zip(("the losses", "the parameters"), *ends, strict=True):
        tolerance = 1e3 * TOLERANCES[dtype]  # rounding grows from step to step
        assert_close(other, one, tolerance, f"{backend!r}, {dtype}, {name} of captured steps")


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


def overrides(backend: Backend) -> set[str]:
    """The primitives that an adapter does not leave to the reference implementation."""
    primitives = {"elementwise", "functions", "total", "total_squares", "fill_uniform", "matmul"}
    primitives |= PRIMITIVES.keys()
    adapter = type(backend)
    return {
        name for name in primitives
        if getattr(adapter, name, None) is not getattr(ReferenceBackend, name)
    }  # fmt: skip


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
