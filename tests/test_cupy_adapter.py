"""What the CuPy adapter does around its kernels, with a stand-in for CuPy: no GPU is needed."""

from __future__ import annotations

import ctypes
import math
import sys
from contextlib import nullcontext
from functools import partial
from threading import Thread
from types import SimpleNamespace

import array_api_compat.numpy
import numpy as np
import pytest
from cuda_shim.cublaslt import WORKSPACE, CublasLt
from cuda_shim.streams import Cuda
from primitive_cases import LAYOUTS, normal
from xpmlp_cupy import CupyBackend, lt

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


def to_bfloat16(x, out):
    """The adapter's kernel."""
    assert out.flags.c_contiguous
    out[...] = round_to_bfloat16(np.asarray(x)).view("uint32") >> 16


class Fake(CupyBackend):
    """The adapter over NumPy, with CuPy's errors, its pool and cublasLt acted out."""

    precisions = ("ieee", "tf32", "bfloat16")

    def __init__(self, pool=None, index=0):
        ReferenceBackend.__init__(self, array_api_compat.numpy, f"cuda:{index}")
        self.index, self.pool = index, pool or Pool()
        self.xp_device = SimpleNamespace(mem_info=(1000 - self.pool.held, 1000))
        cuda = Cuda()
        self.stream = cuda.default
        self.lt = CublasLt(cuda)
        self.lt.algorithms = 1
        memory = SimpleNamespace(OutOfMemoryError=OutOfMemoryError)

        def asarray(x):
            self.pool.take(x.nbytes)
            return x.view(Matrix)

        self.cupy = SimpleNamespace(
            ndarray=Matrix, dtype=np.dtype, matmul=np.matmul, asarray=asarray,
            get_default_memory_pool=lambda: self.pool,
            broadcast_to=partial(np.broadcast_to, subok=True),
            ElementwiseKernel=lambda *_, **options: to_bfloat16,
            cuda=cuda,
        )  # fmt: skip
        cuda.memory = memory
        self._products._library = self.lt

        def make(shape, dtype, device):
            return asarray(np.zeros(shape, dtype))

        names = ("float32", "float64", "uint16", "uint8")
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


def test_what_a_gpu_offers_is_a_matter_of_its_age_and_of_cublaslt(monkeypatch):
    gpu = SimpleNamespace(compute_capability="80")
    cupy = SimpleNamespace(cuda=SimpleNamespace(Device=lambda index: gpu))
    modules = {"cupy": cupy, "array_api_compat.cupy": SimpleNamespace()}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(array_api_compat, "cupy", modules["array_api_compat.cupy"], raising=False)
    library = object()
    monkeypatch.setattr(lt, "installed", lambda cupy: library)
    assert CupyBackend("cuda:0").precisions == ("ieee", "tf32", "bfloat16")
    gpu.compute_capability = "75"
    assert CupyBackend("cuda:0").precisions == ("ieee",)
    gpu.compute_capability = "90"
    library = None  # nothing else rounds
    assert CupyBackend("cuda:0").precisions == ("ieee",)


PRECISIONS = {"ieee": (0, 0, 68), "tf32": (0, 0, 77), "bfloat16": (14, 0, 68)}
each_precision = pytest.mark.parametrize("precision", PRECISIONS)
each_rounding = pytest.mark.parametrize("precision", ["tf32", "bfloat16"])


@each_precision
@pytest.mark.parametrize("a_layout", LAYOUTS)
@pytest.mark.parametrize("b_layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(4, 5, 3), (1, 5, 3), (4, 1, 3), (4, 5, 1), (1, 1, 1)])
def test_products_reach_cublaslt(shape, a_layout, b_layout, precision):
    n, k, m = shape
    backend = Fake().with_precision(precision)
    a = LAYOUTS[a_layout](normal((n, k), "float32", 1))
    b = LAYOUTS[b_layout](normal((k, m), "float32", 2))
    compare(backend, a, b)
    # Without bfloat16 operands are taken as they are; others go the usual way.
    strided = "strided" in (a_layout, b_layout) and precision != "bfloat16"
    assert strided or len(backend.lt.products) == 1
    for product in backend.lt.products:
        operand, result, compute = PRECISIONS[precision]
        assert product.kinds == (operand, operand, result)
        assert product.compute == compute


def test_float64_has_its_own_arithmetic():
    backend = Fake()
    a, b = normal((3, 4)), normal((4, 2))
    out = np.empty((3, 2))
    for precision in PRECISIONS:
        backend.with_precision(precision).matmul(*(x.view(Matrix) for x in (a, b, out)))
        np.testing.assert_allclose(out, a @ b, rtol=1e-14)
    assert [(p.kinds, p.compute) for p in backend.lt.products] == [((1, 1, 1), 70)] * 3


def compare(backend, a, b):
    stack = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    shape = *stack, a.shape[-2], b.shape[-1]
    # Aligned alike in every call, as the memory of a device is.
    memory = np.full(math.prod(shape) + 64, np.nan, "float32")
    start = -memory.ctypes.data // 4 % 64
    out = memory[start : start + math.prod(shape)].reshape(shape)
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
        assert len(backend.lt.products) == max(a[..., 0, 0].size, b[..., 0, 0].size)
        backend.lt.products.clear()


@each_precision
def test_transposed_views_and_parts_of_rows_need_no_copy(precision):
    backend = Fake(Pool(limit=10_000)).with_precision(precision)
    x, w, d = (normal(shape, "float32", 1) for shape in ((20, 4), (4, 3), (20, 3)))
    cases = {
        (0, 0): [(x, w), (x[:, 1:3], w[:2]), (x[::2], w)],
        (1, 0): [(x.T, d)],
        (0, 1): [(d, w.T)],
        (1, 1): [(w.T, x.T)],
    }
    for operations, pairs in cases.items():
        for a, b in pairs:
            compare(backend, a, b)
            # b before a, and whether what cublasLt takes for columns are our columns.
            assert backend.lt.products.pop().transposes == operations[::-1]


def test_a_step_allocates_scratch_once_and_shares_it_with_nobody():
    backend = Fake(Pool(limit=100_000)).with_precision("bfloat16")
    pool, products = backend.pool, [(20, 4, 3), (4, 20, 3), (20, 3, 4)]

    def step():
        for n, k, m in products:
            compare(backend, normal((n, k), "float32", n), normal((k, m), "float32", m))
        return pool.used

    once = step()
    # Two bytes for each of 80 and 60 elements on the left, 12 and 60 on the right, rounded up.
    assert once == 2 * (128 + 64 + 16 + 64) + WORKSPACE
    assert step() == once
    thread = Thread(target=step)
    thread.start()
    thread.join()
    assert pool.used == 2 * once
    with backend.cupy.cuda.Stream():
        assert step() == 3 * once
        assert step() == 3 * once


def test_scratch_that_does_not_fit_is_one_clear_error():
    backend = Fake(Pool(limit=100)).with_precision("bfloat16")
    with pytest.raises(DeviceMemoryError, match="128 bytes does not fit"):
        compare(backend, *(normal((8, 8), "float32") for _ in range(2)))


@each_rounding
def test_what_cublaslt_does_not_take_is_multiplied_by_cupy(precision):
    backend = Fake()
    ones = np.ones((2, 2), "float32").view(Matrix)
    fast = backend.with_precision(precision)
    empty = np.ones((2, 0), "float32").view(Matrix)
    out = ones.copy()
    fast.matmul(empty, empty.T, out)
    assert (out == 0).all()
    stack = np.ones((3, 2, 2), "float32").view(Matrix)
    backend.matmul(stack, stack, out := stack.copy())
    assert (out == 2).all()
    whole = np.ones((2, 2), "int64").view(Matrix)
    fast.matmul(whole, whole, out := whole.copy())
    assert (out == 2).all()
    backend.lt.algorithms = 0
    backend.matmul(ones, ones, out := ones.copy())
    assert (out == 2).all()
    backend.lt.algorithms = 1
    assert not backend.lt.products
    row = normal(2, "float32")
    for x in (ones[::-1], np.broadcast_to(row, (2, 2)), np.broadcast_to(row, (2, 2)).T):
        compare(fast, x, ones)
    assert len(backend.lt.products) == (3 if precision == "bfloat16" else 0)


def test_without_cublaslt_products_are_cupys(monkeypatch):
    backend = Fake()
    del backend._products._library

    def missing(major):
        raise OSError(f"libcublasLt.so.{major}")

    monkeypatch.setattr("xpmlp_cupy.lt.library", missing)
    compare(backend, normal((3, 4), "float32"), normal((4, 2), "float32"))
    assert not backend.lt.products


# --- Plans --------------------------------------------------------------------------------------


def test_a_plan_is_made_once_for_each_kind_of_product():
    backend = Fake()
    memory = np.zeros(600, "float32").view(Matrix)
    start = -memory.data.ptr // 4 % 64  # aligned to 256 bytes

    def multiply(offset):
        a = memory[start + offset : start + offset + 20].reshape(4, 5)
        b = memory[start + 64 : start + 79].reshape(5, 3)
        backend.matmul(a, b, memory[start + 128 : start + 140].reshape(4, 3))

    for offset in (0, 0, 4, 0, 36, 1):
        multiply(offset)
    # As cublasLt sees it, A is on the right. Without an alignment it assumes 256 bytes.
    alignments = [
        tuple(asked[attribute] for attribute in (5, 6, 7, 8)) for asked in backend.lt.asked
    ]
    assert alignments == [(256, 256, 256, 256), (256, 16, 256, 256), (256, 4, 256, 256)]
    # A workspace, and no sums in the order in which parts of them happen to end.
    assert all(asked[1] == 32 << 20 and asked[3] == 6 for asked in backend.lt.asked)


def test_ieee_takes_the_first_algorithm_and_others_the_fastest():
    times = iter([3.0, 1.0, 2.0])
    backend = Fake(Pool(limit=10_000))
    backend.lt.algorithms = 4
    backend.lt.failing = {3}
    backend.cupy.cuda.get_elapsed_time = lambda start, stop: next(times)
    a, b = (normal((4, 4), "float32", i) for i in (0, 1))
    compare(backend, a, b)
    assert [product.algorithm for product in backend.lt.products] == [0]
    backend.lt.products.clear()
    fast = backend.with_precision("tf32")
    compare(fast, a, b)
    assert backend.cupy.cuda.calls["synchronize"] == 3
    compare(fast, a, b)
    assert [product.algorithm for product in backend.lt.products[-2:]] == [1, 1]
    assert backend.cupy.cuda.calls["synchronize"] == 3  # only once


def test_the_next_algorithm_is_taken_where_the_first_cannot_be_run():
    backend = Fake()
    backend.lt.algorithms = 3
    backend.lt.failing = {0, 1}
    a, b = (normal((4, 4), "float32", i) for i in (0, 1))
    compare(backend, a, b)
    assert {product.algorithm for product in backend.lt.products} == {2}
    other = Fake()
    other.lt.failing = {0}
    compare(other, a, b)  # by CuPy's
    assert not other.lt.products


def test_large_arrays_are_handed_over_without_page_locked_memory(monkeypatch):
    monkeypatch.setattr("xpmlp_cupy._PINNED_BYTES", 64)
    backend, given = Fake(), []

    class Large(Matrix):
        def set(self, array):
            given.append(array.nbytes)
            self[...] = array

    backend.cupy.empty = lambda shape, dtype: np.empty(shape, dtype).view(Large)
    for n in (8, 9):
        x = np.arange(float(n))
        np.testing.assert_array_equal(backend.from_host(x), x)
    assert given == [72]


def test_the_installed_library_takes_the_descriptions():
    """The constants and structures, read back from the real cublasLt, which needs no driver."""
    try:
        library = lt.library(13)
    except OSError as error:
        pytest.skip(f"cublasLt is not installed ({error})")
    for kind, shapes in {
        "float64": ((False, 784), (True, 784)), "tf32": ((True, 128), (False, 256)),
        "bfloat16": ((False, 800), (False, 256)), "float32": ((False, 784), (False, 300)),
    }.items():  # fmt: skip
        plan = lt.Plan(library, None, lt.Product(kind, 128, 784, 256, *shapes, (256, 16, 4)))
        assert plan.candidates == []  # there is no handle to ask with
        (a_turned, a_apart), (b_turned, b_apart) = shapes
        operand, result, compute = lt.KINDS[kind]
        read = partial(read_back, library.cublasLtMatmulDescGetAttribute, plan._description)
        assert read(0, ctypes.c_int32) == compute
        assert read(1, ctypes.c_int32) == (1 if kind == "float64" else 0)
        assert read(lt.TRANSPOSE_A, ctypes.c_int32) == b_turned
        assert read(lt.TRANSPOSE_B, ctypes.c_int32) == a_turned
        layouts = {
            plan._a.value: (operand, *((784, 256) if b_turned else (256, 784)), b_apart),
            plan._b.value: (operand, *((128, 784) if a_turned else (784, 128)), a_apart),
            plan._d.value: (result, 256, 128, 256),
        }
        kinds = {0: ctypes.c_uint32, 2: ctypes.c_uint64, 3: ctypes.c_uint64, 4: ctypes.c_int64}
        for layout, expected in layouts.items():
            read = partial(read_back, library.cublasLtMatrixLayoutGetAttribute, layout)
            assert tuple(read(number, kind) for number, kind in kinds.items()) == expected


def test_the_installed_library_takes_what_follows_a_product(monkeypatch):
    try:
        library = lt.library(13)
    except OSError as error:
        pytest.skip(f"cublasLt is not installed ({error})")
    plan = lt.Plan(library, None, lt.Product("tf32", 128, 784, 256, (False, 784), (False, 256),
                                             (256, 256, 256)))  # fmt: skip
    plan.chosen = lt.Heuristic()
    descriptions = []
    original = plan._describe
    monkeypatch.setattr(lt.Plan, "_describe", lambda self: descriptions.append(original())
                        or descriptions[-1])  # fmt: skip
    assert plan.ending(lt.RELU_BIAS, 4096) is None  # there is no handle to ask with
    read = partial(read_back, library.cublasLtMatmulDescGetAttribute, descriptions[0])
    assert read(lt.EPILOGUE, ctypes.c_uint32) == lt.RELU_BIAS
    assert read(lt.BIAS_POINTER, ctypes.c_void_p) == 4096
    assert read(lt.TRANSPOSE_A, ctypes.c_int32) == 0


def read_back(function, of, attribute, kind):
    place = ctypes.c_void_p
    function.argtypes = [place, ctypes.c_int, place, ctypes.c_size_t, place]
    value, written = kind(), ctypes.c_size_t()
    size = ctypes.sizeof(value)
    assert function(of, attribute, ctypes.byref(value), size,
                    ctypes.byref(written)) == 0  # fmt: skip
    assert written.value == size
    return value.value
