"""Data that does not fit into a device's memory is moved batch by batch, with the same result."""

from __future__ import annotations

import logging

import array_api_compat.numpy
import numpy as np
import pytest

from xpmlp import Dense, Network, fit
from xpmlp.backends import ReferenceBackend, host
from xpmlp.data import HostRows, as_matrix


class Small(ReferenceBackend):
    """A device beside the host, with little memory."""

    name = "small"
    immediate = False

    def __init__(self, free: int) -> None:
        super().__init__(array_api_compat.numpy)
        self.free = free
        self.moved: list[tuple[tuple[int, ...], str]] = []
        self.read_back = 0

    def owns(self, x: object) -> bool:
        return isinstance(x, np.ndarray) and x is not self.given

    given: object = None

    def memory(self) -> tuple[int, int] | None:
        return self.free, 4 * self.free

    def from_host(self, x):
        self.moved.append((x.shape, str(x.dtype)))
        return super().from_host(x)

    def to_host(self, x):
        self.read_back += 1
        return super().to_host(x)


def train(free, dtype="float32", **options):
    backend = Small(free)
    draw = np.random.default_rng(0)
    X = draw.integers(0, 255, (90, 8)).astype(dtype)
    backend.given = X
    network = Network(8, [Dense(6, "tanh"), Dense(1)], backend=backend, dtype="float32", seed=0)
    history = fit(network, X, X[:, 0] / 255.0, loss="squared_error", batch_size=20, epochs=3,
                  validation=(X, X[:, 1] / 255.0), verbose=0,
                  metrics=["mean_squared_error"], **options)  # fmt: skip
    return backend, network.parameters.copy(), history.to_dict()


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_a_run_is_the_same_to_the_bit(dtype, shuffle, caplog):
    caplog.set_level(logging.INFO, "xpmlp")
    resident, parameters, history = train(1 << 20, dtype, shuffle=shuffle)
    assert not caplog.records
    streamed, same, other = train(700, dtype, shuffle=shuffle)
    assert "X stays in host memory: of cpu's 2,800 bytes 700 are free" in caplog.text
    np.testing.assert_array_equal(same, parameters)
    assert other == history
    # Batches in the dtype of the data, the last one smaller, and never the whole but to validate.
    assert ((20, 8), dtype) in streamed.moved
    assert ((10, 8), dtype) in streamed.moved
    assert ((20, 8), dtype) not in resident.moved


def test_the_order_of_the_rows_is_known_on_the_host():
    resident, *_ = train(1 << 20)
    streamed, *_ = train(700)
    assert streamed.read_back == resident.read_back


def test_there_must_be_room_for_the_model_beside_it():
    X = np.zeros((100, 3), "float32")  # 1,200 bytes
    backend = Small(2000)
    for beside, moved in ((400, True), (401, False)):
        x = as_matrix(backend, X, "X", "float32", beside=beside)
        assert isinstance(x, HostRows) is not moved


def test_what_fits_is_moved_and_what_is_there_stays():
    X = np.zeros((100, 3), "float32")
    backend = Small(1600)
    backend.given = X
    assert not isinstance(as_matrix(backend, X, "X", "float32"), HostRows)
    backend.free = 1599
    assert isinstance(as_matrix(backend, X, "X", "float32"), HostRows)
    assert as_matrix(host(), X, "X", "float32") is X


def test_predictions_are_made_in_blocks():
    backend = Small(100)
    X = np.random.default_rng(0).standard_normal((500, 4)).astype("float32")
    backend.given = X
    network = Network(4, [Dense(3, "relu"), Dense(2)], backend=backend, dtype="float32", seed=0)
    on_cpu = Network(4, network.layers, device="cpu", dtype="float32", seed=0)
    np.testing.assert_allclose(network.predict(X), on_cpu.predict(X), rtol=1e-6)


def test_rows_are_written_where_they_are_wanted():
    X = np.arange(12).reshape(4, 3)
    rows = HostRows(X)
    out = np.zeros((2, 3), X.dtype)
    for chosen in (slice(1, 3), np.array([3, 0])):
        rows.write(chosen, out)
        np.testing.assert_array_equal(out, X[chosen])
        np.testing.assert_array_equal(rows[chosen], X[chosen])
