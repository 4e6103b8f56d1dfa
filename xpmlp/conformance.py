"""The tests of an adapter, for the test suite of its package.

>>> from xpmlp.conformance import BackendTests
>>> class TestMyBackend(BackendTests):
...     def open(self):
...         return MyBackend("my-device")

That is a whole test file: pytest finds the methods.
"""

from __future__ import annotations

from typing import Any

import pytest

from xpmlp.backends import host
from xpmlp.testing import check_backend
from xpmlp.training import fit
from xpmlp.typing import Backend
from xpmlp.verify import Comparison, gradient_difference, own_faults, trace
from xpmlp.verify_cases import Case, build, cases, sample

_CASES = [pytest.param(case, id=case.name.replace(", ", "-")) for case in cases()]


class BackendTests:
    """Derive from this class and define :meth:`open`."""

    steps = 40
    """Of each run that is compared with NumPy's."""

    def open(self) -> Backend:
        """The adapter on the device to be tested."""
        raise NotImplementedError("define open(self), which returns the adapter")

    @pytest.fixture(name="backend")
    def _backend(self) -> Backend:
        return self.open()

    @pytest.fixture(params=("float64", "float32"), name="dtype")
    def _dtype(self, request: Any, backend: Backend) -> str:
        if request.param not in [policy.parameter for policy in backend.policies]:
            pytest.skip(f"{backend!r} does not train in {request.param}")
        return str(request.param)

    def test_it_describes_itself(self, backend: Backend) -> None:
        adapter = type(backend)
        assert adapter.unavailable() is None
        devices = adapter.devices()
        assert backend.device in devices, f"{backend.device!r} is not among {devices}"
        assert adapter.accepts(backend.device), f"does not accept {backend.device!r}"
        assert not adapter.accepts("no such device"), "accepts 'no such device'"
        assert isinstance(backend.name, str)
        assert isinstance(adapter.version(), str)
        assert "ieee" in backend.precisions

    def test_arrays_come_and_go(self, backend: Backend) -> None:
        with backend.context():
            for kind in ("bool", "uint8", "int64", "float32", "float64"):
                if kind == "float64" and kind not in [p.parameter for p in backend.policies]:
                    continue
                x = (host().xp.arange(6).reshape(2, 3) % 2).astype(kind)
                there = backend.from_host(x)
                assert backend.owns(there)
                assert not backend.owns([1.0])
                back = backend.to_host(there)
                assert back.dtype == x.dtype
                assert (back == x).all(), f"{x} came back as {back}"
            assert backend.read(backend.zeros((), "float32")) == 0.0
            assert tuple(backend.empty((2, 3), "float32").shape) == (2, 3)

    def test_the_primitives_are_what_they_should_be(self, backend: Backend) -> None:
        check_backend(backend)

    @pytest.mark.parametrize("case", _CASES)
    def test_the_gradient_is_that_of_finite_differences(
        self, backend: Backend, case: Case, dtype: str
    ) -> None:
        gradient_difference(case, backend, dtype)

    @pytest.mark.parametrize("case", _CASES)
    def test_a_run_is_numpys(self, backend: Backend, case: Case, dtype: str) -> None:
        found = trace(case, backend, dtype, self.steps)
        faults = own_faults(case, backend, found)
        assert not faults, "; ".join(faults)
        comparison = Comparison(("numpy", backend.name), dtype)
        comparison.add(case, trace(case, host(), dtype, self.steps), found)
        assert comparison.first is None, str(comparison.first)

    def test_a_network_is_trained(self, backend: Backend, dtype: str) -> None:
        case = cases()[0]
        X, y, _ = sample(case)
        network = build(case, backend, dtype)
        history = fit(network, X, y, loss=case.loss, epochs=20, verbose=0)
        assert history["loss"][-1] < history["loss"][0]
        assert network.predict(X).shape == y.shape
