"""What the CuPy adapter does around its kernels, with a stand-in for CuPy: no GPU is needed."""

from __future__ import annotations

import ctypes
import sys
from contextlib import nullcontext
from functools import partial
from threading import Thread
from types import SimpleNamespace

import array_api_compat.numpy
import numpy as np
import pytest
from primitive_cases import LAYOUTS, normal
from xpmlp_cupy import CupyBackend

from xpmlp import Dense, DeviceMemoryError, Network
from xpmlp.backends import ReferenceBackend
from xpmlp.data import to_backend
from xpmlp.testing import round_to_bfloat16
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


def columns_at(address, rows, columns, distance, kind):
    """A matrix as cuBLAS stores it: column by column, `distance` apart; 14 is bfloat16."""
    element = {0: ctypes.c_float, 14: ctypes.c_uint16}[kind]
    flat = (element * (rows + (columns - 1) * distance)).from_address(address)
    array, size = np.ctypeslib.as_array(flat), ctypes.sizeof(element)
    array = np.lib.stride_tricks.as_strided(array, (rows, columns), (size, size * distance))
    return array if kind == 0 else (array.astype("uint32") << 16).view("float32")


def to_bfloat16(x, out):
    """The adapter's kernel."""
    assert out.flags.c_contiguous
    out[...] = round_to_bfloat16(np.asarray(x)).view("uint32") >> 16


def gemm(calls):
    """cuBLAS's product."""

    def gemmEx(handle, op_a, op_b, m, n, k, alpha, a, kind_a, lda, b, kind_b, ldb, beta, c, kind_c,
               ldc, compute, algorithm):  # fmt: skip
        assert [ctypes.c_float.from_address(x).value for x in (alpha, beta)] == [1.0, 0.0]
        assert (handle, algorithm, kind_c) == (5, "default", 0)
        assert kind_a == kind_b == {"tf32": 0, "float32": 14}[compute]
        assert lda >= (m, k)[op_a]
        assert ldb >= (k, n)[op_b]
        left = columns_at(a, *((k, m) if op_a else (m, k)), lda, kind_a)
        right = columns_at(b, *((n, k) if op_b else (k, n)), ldb, kind_b)
        product = (left.T if op_a else left) @ (right.T if op_b else right)
        columns_at(c, m, n, ldc, kind_c)[...] = product
        calls.append((op_a, op_b))

    return gemmEx


class Fake(CupyBackend):
    """The adapter over NumPy, with CuPy's errors, its pool and its cuBLAS acted out."""

    precisions = ("ieee", "tf32", "bfloat16")

    def __init__(self, pool=None, index=0):
        ReferenceBackend.__init__(self, array_api_compat.numpy, f"cuda:{index}")
        self.index, self.pool, self.calls = index, pool or Pool(), []
        self.xp_device = SimpleNamespace(mem_info=(1000 - self.pool.held, 1000))
        cublas = SimpleNamespace(
            gemmEx=gemm(self.calls), CUBLAS_OP_N=0, CUBLAS_OP_T=1, CUBLAS_GEMM_DEFAULT="default",
            CUBLAS_COMPUTE_32F_FAST_TF32="tf32", CUBLAS_COMPUTE_32F="float32")  # fmt: skip
        self.stream = SimpleNamespace(ptr=0)
        device = SimpleNamespace(get_cublas_handle=lambda: 5)
        memory = SimpleNamespace(OutOfMemoryError=OutOfMemoryError)

        def asarray(x):
            self.pool.take(x.nbytes)
            return x.view(Matrix)

        self.cupy = SimpleNamespace(
            ndarray=Matrix, dtype=np.dtype, matmul=np.matmul, asarray=asarray,
            get_default_memory_pool=lambda: self.pool,
            broadcast_to=partial(np.broadcast_to, subok=True),
            ElementwiseKernel=lambda *_, **options: to_bfloat16,
            cuda=SimpleNamespace(cublas=cublas, device=device, memory=memory,
                                 get_current_stream=lambda: self.stream))  # fmt: skip

        def make(shape, dtype, device):
            return asarray(np.zeros(shape, dtype))

        names = ("float32", "float64", "uint16")
        self.xp = SimpleNamespace(empty=make, zeros=make, **dict(zip(names, names, strict=True)))

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
    network = Network(2, [Dense(1)], backend=backend, dtype="float32", precision="tf32")
    assert network.backend is fast
    assert network.on(backend).backend is fast


def test_what_a_gpu_offers_is_a_matter_of_its_age(monkeypatch):
    gpu = SimpleNamespace(compute_capability="80")
    cupy = SimpleNamespace(cuda=SimpleNamespace(Device=lambda index: gpu))
    modules = {"cupy": cupy, "array_api_compat.cupy": SimpleNamespace()}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(array_api_compat, "cupy", modules["array_api_compat.cupy"], raising=False)
    assert CupyBackend("cuda:0").precisions == ("ieee", "tf32", "bfloat16")
    gpu.compute_capability = "75"
    assert CupyBackend("cuda:0").precisions == ("ieee",)


each_rounding = pytest.mark.parametrize("precision", ["tf32", "bfloat16"])


@each_rounding
@pytest.mark.parametrize("a_layout", LAYOUTS)
@pytest.mark.parametrize("b_layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(4, 5, 3), (1, 5, 3), (4, 1, 3), (4, 5, 1), (1, 1, 1)])
def test_products_reach_cublas(shape, a_layout, b_layout, precision):
    n, k, m = shape
    backend = Fake().with_precision(precision)
    a = LAYOUTS[a_layout](normal((n, k), "float32", 1))
    b = LAYOUTS[b_layout](normal((k, m), "float32", 2))
    compare(backend, a, b)
    # TF32 takes operands as they are; others go the usual way.
    strided = "strided" in (a_layout, b_layout) and precision == "tf32"
    assert strided or len(backend.calls) == 1


def compare(backend, a, b):
    shape = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    out = np.full((*shape, a.shape[-2], b.shape[-1]), np.nan, "float32")
    backend.matmul(a.view(Matrix), b.view(Matrix), out.view(Matrix))
    if backend.precision == "bfloat16":
        a, b = round_to_bfloat16(a), round_to_bfloat16(b)
    np.testing.assert_allclose(out, a @ b, rtol=1e-5, atol=1e-6)


@each_rounding
@pytest.mark.parametrize("shapes", [
    ((2, 4, 5), (2, 5, 3)), ((3, 2, 4, 5), (3, 2, 5, 3)), ((4, 5), (2, 5, 3)), ((2, 4, 5), (5, 3)),
])  # fmt: skip
def test_each_matrix_of_a_stack_is_a_product(shapes, precision):
    backend = Fake().with_precision(precision)
    a, b = (normal(shape, "float32", len(shape)) for shape in shapes)
    for left, right in [(a, b), (a.mT.copy().mT, b)]:
        compare(backend, left, right)
        assert len(backend.calls) == max(a[..., 0, 0].size, b[..., 0, 0].size)
        backend.calls.clear()


@each_rounding
def test_transposed_views_and_parts_of_rows_need_no_copy(precision):
    backend = Fake().with_precision(precision)
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


def test_a_step_allocates_scratch_once_and_shares_it_with_nobody():
    backend = Fake(Pool(limit=10_000)).with_precision("bfloat16")
    pool, products = backend.pool, [(20, 4, 3), (4, 20, 3), (20, 3, 4)]

    def step():
        for n, k, m in products:
            compare(backend, normal((n, k), "float32", n), normal((k, m), "float32", m))
        return pool.used

    once = step()
    # Two bytes for each of 80 and 60 elements on the left, 12 and 60 on the right, rounded up.
    assert once == 2 * (128 + 64 + 16 + 64)
    assert step() == once
    thread = Thread(target=step)
    thread.start()
    thread.join()
    assert pool.used == 2 * once
    backend.stream.ptr = 7
    assert step() == 3 * once
    assert step() == 3 * once


def test_scratch_that_does_not_fit_is_one_clear_error():
    backend = Fake(Pool(limit=100)).with_precision("bfloat16")
    with pytest.raises(DeviceMemoryError, match="128 bytes does not fit"):
        compare(backend, *(normal((8, 8), "float32") for _ in range(2)))


@each_rounding
def test_only_products_of_float32_are_rounded(precision):
    backend = Fake()
    ones = np.ones((2, 2), "float32").view(Matrix)
    backend.matmul(ones, ones, ones.copy())
    assert not backend.calls
    fast = backend.with_precision(precision)
    wide = normal((2, 2)).view(Matrix)
    out = np.empty_like(wide)
    fast.matmul(wide, wide, out)
    assert (out == wide @ wide).all()
    empty = np.ones((2, 0), "float32").view(Matrix)
    out = ones.copy()
    fast.matmul(empty, empty.T, out)
    assert (out == 0).all()
    assert not backend.calls
    row = normal(2, "float32")
    for x in (ones[::-1], np.broadcast_to(row, (2, 2)), np.broadcast_to(row, (2, 2)).T):
        compare(fast, x, ones)
    assert len(backend.calls) == (3 if precision == "bfloat16" else 0)
