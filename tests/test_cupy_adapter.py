"""What the CuPy adapter does around its kernels, with a stand-in for CuPy: no GPU is needed."""

from __future__ import annotations

import ctypes
from contextlib import nullcontext
from types import SimpleNamespace

import array_api_compat.numpy
import numpy as np
import pytest
from primitive_cases import LAYOUTS, normal
from xpmlp_cupy import CupyBackend
from xpmlp_cupy.products import matmul_tf32

from xpmlp import Dense, DeviceMemoryError, Network
from xpmlp.backends import ReferenceBackend
from xpmlp.data import to_backend
from xpmlp.typing import Backend


class OutOfMemoryError(MemoryError):
    pass


class Pool:
    """A memory pool of 1000 bytes, some of them held for nobody."""

    def __init__(self, held=0, limit=0):
        self.held, self.used, self.limit, self.asked = held, 0, limit, []

    def take(self, n_bytes):
        self.asked.append(n_bytes)
        if self.used + self.held + n_bytes > (self.limit or 1000):
            raise OutOfMemoryError
        self.used += n_bytes

    def free_all_blocks(self):
        self.held = 0

    def free_bytes(self):
        return self.held

    def used_bytes(self):
        return self.used

    def get_limit(self):
        return self.limit


class Matrix(np.ndarray):
    """A NumPy array with an address as CuPy's has it, on one of two GPUs."""

    device = SimpleNamespace(id=0)

    @property
    def data(self):
        return SimpleNamespace(ptr=self.__array_interface__["data"][0])


def columns_at(address, rows, columns, distance):
    """A matrix as cuBLAS stores it: column by column, `distance` apart."""
    flat = (ctypes.c_float * (rows + (columns - 1) * distance)).from_address(address)
    array = np.ctypeslib.as_array(flat)
    return np.lib.stride_tricks.as_strided(array, (rows, columns), (4, 4 * distance))


def gemm(calls):
    """cuBLAS's product."""

    def gemmEx(handle, op_a, op_b, m, n, k, alpha, a, kind_a, lda, b, kind_b, ldb, beta, c, kind_c,
               ldc, compute, algorithm):  # fmt: skip
        assert [ctypes.c_float.from_address(x).value for x in (alpha, beta)] == [1.0, 0.0]
        assert (handle, compute, algorithm) == (5, "tf32", "default")
        assert {kind_a, kind_b, kind_c} == {0}
        assert lda >= (m, k)[op_a]
        assert ldb >= (k, n)[op_b]
        left = columns_at(a, k, m, lda).T if op_a else columns_at(a, m, k, lda)
        right = columns_at(b, n, k, ldb).T if op_b else columns_at(b, k, n, ldb)
        columns_at(c, m, n, ldc)[...] = left @ right
        calls.append((op_a, op_b))

    return gemmEx


class Fake(CupyBackend):
    """The adapter over NumPy, with CuPy's errors, its pool and its cuBLAS acted out."""

    precisions = ("ieee", "tf32")

    def __init__(self, pool=None, index=0):
        ReferenceBackend.__init__(self, array_api_compat.numpy, f"cuda:{index}")
        self.index, self.pool, self.calls = index, pool or Pool(), []
        self.xp_device = SimpleNamespace(mem_info=(1000 - self.pool.held, 1000))
        cublas = SimpleNamespace(
            gemmEx=gemm(self.calls), CUBLAS_OP_N=0, CUBLAS_OP_T=1, CUBLAS_GEMM_DEFAULT="default",
            CUBLAS_COMPUTE_32F_FAST_TF32="tf32")  # fmt: skip
        device = SimpleNamespace(get_cublas_handle=lambda: 5)
        memory = SimpleNamespace(OutOfMemoryError=OutOfMemoryError)

        def asarray(x):
            self.pool.take(x.nbytes)
            return x.view(Matrix)

        self.cupy = SimpleNamespace(
            ndarray=Matrix, dtype=np.dtype, matmul=np.matmul, asarray=asarray,
            get_default_memory_pool=lambda: self.pool,
            cuda=SimpleNamespace(cublas=cublas, device=device, memory=memory))  # fmt: skip

        def make(shape, dtype, device):
            return asarray(np.zeros(shape, dtype))

        self.xp = SimpleNamespace(empty=make, zeros=make, float32="float32", float64="float64")

    def context(self):
        return nullcontext()


# --- Memory -------------------------------------------------------------------------------------


def allocate(backend, make, n):
    arguments = (np.zeros(n),) if make == "from_host" else ((n,), "float64")
    getattr(backend, make)(*arguments)


@pytest.mark.parametrize("make", ["empty", "zeros", "from_host"])
def test_running_out_of_memory_is_one_clear_error(make):
    backend = Fake(Pool(held=300))
    with pytest.raises(DeviceMemoryError) as caught:
        allocate(backend, make, 300)
    message = str(caught.value)
    assert "2,400 bytes does not fit on cuda:0, where 700 of 1,000 bytes" in message
    assert "smaller batches" in message
    assert isinstance(caught.value, MemoryError)
    assert isinstance(caught.value.__cause__, OutOfMemoryError)
    assert backend.pool.asked == [2400, 2400]


@pytest.mark.parametrize("make", ["empty", "zeros", "from_host"])
def test_what_the_pool_holds_for_nobody_is_given_back_first(make):
    backend = Fake(Pool(held=900))
    allocate(backend, make, 20)
    assert backend.pool.asked == [160, 160]
    assert backend.pool.used == 160


def test_the_pools_limit_counts_as_the_devices():
    assert Fake(Pool(held=300)).memory() == (1000, 1000)
    backend = Fake(Pool(limit=400))
    backend.zeros((10,), "float32")
    assert backend.memory() == (360, 400)
    with pytest.raises(DeviceMemoryError, match="360 of 400 bytes"):
        backend.zeros((100,), "float32")


# --- Several GPUs -------------------------------------------------------------------------------


def test_arrays_on_another_gpu_are_moved_not_used(monkeypatch):
    here, there = Fake(index=0), Fake(index=1)
    x = here.zeros((3,), "float32")
    assert here.owns(x)
    assert not there.owns(x)
    monkeypatch.setattr("xpmlp.data.backend_of", lambda x: here)
    here.to_host = lambda x: np.array(x)
    assert to_backend(here, x) is x
    assert to_backend(there, x) is not x
    assert there.pool.used == 12


# --- Precision ----------------------------------------------------------------------------------


def test_a_precision_is_another_adapter_on_the_same_device():
    backend: Backend = Fake()
    fast = backend.with_precision("tf32")
    assert fast is not backend
    assert (fast.precision, backend.precision) == ("tf32", "ieee")
    assert (fast.device, fast.name) == (backend.device, backend.name)
    assert fast.with_precision("tf32") is backend.with_precision("tf32") is fast
    assert fast.with_precision("ieee") is backend.with_precision("ieee") is backend


def test_a_network_computes_in_its_precision():
    class Host(ReferenceBackend):
        precisions = ("ieee", "tf32")

        def with_precision(self, name):
            return self if name == "ieee" else fast

    backend, fast = (Host(array_api_compat.numpy) for _ in range(2))
    assert Network(2, [Dense(1)], backend=backend).backend is backend
    network = Network(2, [Dense(1)], backend=backend, precision="tf32")
    assert network.backend is fast
    assert network.on(backend).backend is fast


@pytest.mark.parametrize("a_layout", LAYOUTS)
@pytest.mark.parametrize("b_layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(4, 5, 3), (1, 5, 3), (4, 1, 3), (4, 5, 1), (1, 1, 1)])
def test_products_in_tf32_reach_cublas_as_they_are(shape, a_layout, b_layout):
    n, k, m = shape
    backend = Fake().with_precision("tf32")
    a = LAYOUTS[a_layout](normal((n, k), "float32", 1))
    b = LAYOUTS[b_layout](normal((k, m), "float32", 2))
    compare(backend, a, b)
    strided = "strided" in (a_layout, b_layout)
    assert strided or len(backend.calls) == 1  # others go the usual way


def compare(backend, a, b):
    out = np.full((a.shape[0], b.shape[1]), np.nan, "float32")
    backend.matmul(a.view(Matrix), b.view(Matrix), out.view(Matrix))
    np.testing.assert_allclose(out, a @ b, rtol=1e-5, atol=1e-6)


def test_transposed_views_and_parts_of_rows_need_no_copy():
    backend = Fake().with_precision("tf32")
    x, w, d = (normal(shape, "float32", 1) for shape in ((20, 4), (4, 3), (20, 3)))
    cases = {
        (0, 0): [(x, w), (x[:, 1:3], w[:2]), (x[::2], w)],
        (0, 1): [(x.T, d)],
        (1, 0): [(d, w.T)],
        (1, 1): [(w.T, x.T)],
    }
    for operations, pairs in cases.items():
        for a, b in pairs:
            compare(backend, a, b)
            assert backend.calls.pop() == operations


def test_only_float32_matrices_are_computed_in_tf32():
    backend = Fake()
    ones = np.ones((2, 2), "float32").view(Matrix)
    backend.matmul(ones, ones, ones.copy())
    assert not backend.calls
    fast = backend.with_precision("tf32")
    wide = ones.astype("float64")
    fast.matmul(wide, wide, wide.copy())
    stack = np.ones((3, 2, 2), "float32").view(Matrix)
    fast.matmul(stack, stack, stack.copy())
    empty = np.ones((2, 0), "float32").view(Matrix)
    out = ones.copy()
    fast.matmul(empty, empty.T, out)
    assert (out == 0).all()
    row = np.ones(3, "float32")
    for x in (ones[::-1], np.broadcast_to(row, (3, 3)), np.broadcast_to(row, (3, 3)).T):
        assert not matmul_tf32(backend.cupy.cuda.cublas, 5, x, ones, out)
    assert not backend.calls
