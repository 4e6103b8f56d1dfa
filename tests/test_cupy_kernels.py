"""The CuPy adapter's kernels without a GPU: compiled by NVRTC, and run on the CPU.

CuPy writes their source as for a GPU. What this cannot show: races, subnormals flushed to zero,
CUDA's own exp and log, and launches.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from cuda_shim import no_compiler
from primitive_cases import CASES, NUMPY, REFERENCE, ULPS, assert_same, normal
from rule_operands import RULES, all_arrays, as_called, assert_conforms, n_results, parameters

from xpmlp import Dense, Dropout, Network, NonFiniteLossError, fit, rules
from xpmlp.backends import ReferenceBackend, available_backends
from xpmlp.rng import Stream
from xpmlp.testing import round_to_bfloat16

cupy = pytest.importorskip("cupy", reason="CuPy is not installed; pip install 'xpmlp[kernels]'")

from cuda_shim.adapter import EmulatedBackend  # noqa: E402
from cuda_shim.nvrtc import cubin, no_nvrtc  # noqa: E402
from xpmlp_cupy import CupyBackend  # noqa: E402
from xpmlp_cupy.kernels import OPTIONS, RoundToBfloat16  # noqa: E402

DTYPES = ("float32", "float64")
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
each_rule = pytest.mark.parametrize("name", RULES)

# --- What is run: first to record the kernels, then, as tests, to compute -----------------------

# What CuPy's own functions do runs here through NumPy's: it is the calls that are tested.
PRIMITIVES = [name for name in CASES if name in vars(CupyBackend) and name not in (
    "owns", "from_host", "to_host", "functions")]  # fmt: skip


def run_cases(backend, primitive, dtype):
    return {name: run(backend, dtype) for name, run in CASES[primitive].items()}


def run_rule(backend, name, dtype):
    """Operands and results of each kind of call."""
    rule = RULES[name]
    for shape in ((3, 5), (1, 1)):
        operands = as_called(rule, shape, dtype)
        outs = tuple(np.full(shape, np.nan, dtype) for _ in range(n_results(rule)))
        backend.elementwise(rule)(outs, *operands)
        yield operands, outs
    flat = [np.ascontiguousarray(x) for x in all_arrays(rule, (7, 4), dtype)]
    for place in range(len(parameters(rule)) - n_results(rule) + 1):
        operands = [x.copy() for x in flat]
        outs = tuple(operands[place : place + n_results(rule)])
        backend.elementwise(rule)(outs, *operands)
        yield flat, outs


def run_dropout(backend, dtype):
    x, u = normal((30, 7), dtype), np.empty((30, 7), "float32")
    backend.fill_uniform(u, Stream(7, 9 << 64))
    backend.elementwise(rules.dropout)((x,), x, u, float(np.float32(0.8)), 1 / 0.8)
    return x


STREAMS = [
    Stream(0, 0),
    Stream((1 << 128) - 1, 5),
    Stream(0x0123456789ABCDEF_FEDCBA9876543210, 7 << 192 | 3 << 128 | 2 << 64),
    *(Stream(3, (1 << bits) - back) for bits in (64, 128, 192, 256) for back in (1, 2, 3)),
    Stream(5, (1 << 64) - 1 << 64 | (1 << 64) - 2),
]


def run_streams(backend):
    drawn = []
    for stream in STREAMS:
        for size in (1, 2, 7, 8, 9, 63, 1001):
            drawn.append(np.full(size, np.nan, "float32"))
            backend.fill_uniform(drawn[-1], stream)
    buffer = np.full((6, 10), 7.0, "float32")
    backend.fill_uniform(buffer[:, ::2], Stream(1, 2))
    return [*drawn, buffer]


# Every upper half of a float32, with lower halves on both sides of a tie.
HALVES = np.meshgrid(np.arange(1 << 16), [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], indexing="ij")
FLOATS = (HALVES[0] << 16 | HALVES[1]).astype("uint32").view("float32")


def run_rounding(backend):
    """bfloat16 in every layout, as float32."""
    for x in (FLOATS, FLOATS.T, FLOATS[::3, ::2], FLOATS[:1, :1]):
        out = np.full(x.shape, 7, "uint16")
        RoundToBfloat16(backend.cupy)(x, out)
        yield x, (out.astype("uint32") << 16).view("float32")


def mixed(xp: Any, x: Any, y: Any, z: Any) -> Any:
    return x * y + 0.1 * z


def run_mixed(backend):
    """Operands of several dtypes: the widest float decides, whatever the out is."""
    x, y, z = normal((4, 3), "float32", 1), normal((4, 1), "float64", 2), np.arange(3)
    outs = []
    for operands in [(x, y, z), (x, x, z), (x, np.float64(0.3), 2), (x, y[0, 0] * np.ones(()), x)]:
        for dtype in DTYPES:
            outs.append(np.full((4, 3), np.nan, dtype))
            backend.elementwise(mixed)((outs[-1],), *operands)
    narrow = np.full((4, 3), 7, "int32")
    backend.elementwise(mixed)((narrow,), 3 * x, x, z)
    return [*outs, narrow]


def run_training(backend, dtype):
    draw = np.random.default_rng(0)
    X, y, weight = draw.standard_normal((50, 6)), draw.integers(0, 3, 50), draw.uniform(0, 1, 50)
    layers = [Dense(8, "gelu"), Dropout(0.3), Dense(5, "relu"), Dense(3, "softmax")]
    network = Network(6, layers, backend=backend, dtype=dtype)
    fit(network, X, y, loss="log_loss", optimizer="adam", epochs=4, batch_size=16, alpha=0.01,
        l1=1e-3, clip_norm=1.0, sample_weight=weight, verbose=0)  # fmt: skip
    return backend.to_host(network.parameters)


@pytest.fixture(scope="module")
def recorded():
    """The adapter, after it has made all kernels of this file."""
    backend = EmulatedBackend()
    with backend.cupy.recording(), np.errstate(all="ignore"):
        run_streams(backend)
        run_mixed(backend)
        list(run_rounding(backend))
        for dtype in DTYPES:
            run_dropout(backend, dtype)
            for primitive in PRIMITIVES:
                run_cases(backend, primitive, dtype)
            for name in RULES:
                list(run_rule(backend, name, dtype))
            with contextlib.suppress(NonFiniteLossError):
                run_training(backend, dtype)
    return backend


@pytest.fixture(scope="module")
def backend(recorded, tmp_path_factory):
    """The adapter on the CPU."""
    reason = no_compiler()
    if reason:
        pytest.skip(reason)
    recorded.cupy.build(tmp_path_factory.mktemp("kernels"))
    return recorded


# --- On the CPU ---------------------------------------------------------------------------------


def test_every_override_has_cases():
    described = {"name", "library", "immediate", "precision", "with_precision", "functions",
                 "unavailable", "devices", "version", "accepts", "memory", "context",
                 "synchronize", "empty", "zeros", "owns", "from_host", "to_host",
                 "recordable", "load_rows"}  # fmt: skip
    overrides = {name for name in vars(CupyBackend) if name in vars(ReferenceBackend)}
    computing = {name for name in overrides if not name.startswith("_")} - described
    assert computing == set(PRIMITIVES)
    assert {"elementwise", "fill_uniform", "softmax_log_loss", "take_rows"} <= computing


@each_dtype
@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_primitives_equal_the_reference(backend, primitive, dtype):
    with np.errstate(all="ignore"):
        got, expected = (run_cases(one, primitive, dtype) for one in (backend, REFERENCE))
    for name, values in got.items():
        # Another exp than NumPy's, and sums in another order.
        ulps = 4 if "calls a rule" in name else ULPS.get(primitive, 0)
        pair = (values, expected[name])
        for one, other in zip(*pair, strict=True) if isinstance(values, tuple) else [pair]:
            if primitive == "max_rows":  # of two zeros either is the larger
                one, other = one + 0.0, other + 0.0
            assert_same(one, other, ulps, 1.0 if ulps else 0.0)


@each_dtype
@each_rule
def test_every_rule_is_numpys(backend, name, dtype):
    for operands, outs in run_rule(backend, name, dtype):
        assert_conforms(RULES[name], operands, outs)


def test_uniforms_are_numpys_to_the_bit(backend):
    for got, expected in zip(run_streams(backend), run_streams(NUMPY_IN_ANY_LAYOUT), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_bfloat16_is_the_nearest_and_of_two_the_even_one(backend):
    for x, rounded in run_rounding(backend):
        assert_same(rounded, round_to_bfloat16(x))


class NumpyInAnyLayout(type(NUMPY)):
    def fill_uniform(self, out, stream):
        out[...] = self.generator(stream).random(out.shape, dtype=np.float32)


NUMPY_IN_ANY_LAYOUT = NumpyInAnyLayout()


@each_dtype
def test_dropout_is_numpys_to_the_bit(backend, dtype):
    dropped = run_dropout(backend, dtype)
    np.testing.assert_array_equal(dropped, run_dropout(NUMPY, dtype))
    assert 20 < (dropped == 0).sum() < 70


def test_the_widest_operand_decides_the_arithmetic(backend):
    for got, expected in zip(run_mixed(backend), run_mixed(NUMPY), strict=True):
        assert got.dtype == expected.dtype
        info = np.finfo("float32")
        np.testing.assert_allclose(got, expected, rtol=4 * info.eps, atol=4 * info.eps)


@each_dtype
def test_a_whole_run_is_numpys(backend, dtype):
    got, expected = run_training(backend, dtype), run_training(NUMPY, dtype)
    tolerance = 1e-4 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


def test_a_rule_is_one_kernel_for_all_its_calls(recorded):
    def own(xp, x, y):
        return x + y * 0.5

    made = []
    kernel = recorded.elementwise(own)
    emulator, build = recorded.cupy, recorded.cupy.ElementwiseKernel
    emulator.ElementwiseKernel = lambda *args, **options: (
        made.append(args) or build(*args, **options)
    )
    try:
        with emulator.recording():
            for rows in (1, 4, 9):
                x = np.ones((rows, 3), "float32")
                kernel((x,), x, 0.5 * rows)
                kernel((x,), x[:, :1], 2)
            assert len(made) == 1
            kernel((x,), x, np.ones((), "float32"))
            kernel((x,), x.astype("float64"), 0.5)
        assert len(made) == 3
    finally:
        del emulator.ElementwiseKernel
    assert recorded.elementwise(own) is kernel


def test_what_cannot_be_traced_is_applied_to_whole_arrays(recorded):
    def powers(xp, x, y):
        return x**2 + y

    out = np.zeros(3)
    with recorded.cupy.recording():
        recorded.elementwise(powers)((out,), np.arange(3.0), 1.0)
    assert out.tolist() == [1.0, 2.0, 5.0]
    with pytest.raises(ZeroDivisionError):
        recorded.elementwise(lambda xp, x: x * (1 / 0))((out,), out)
    with pytest.raises(ValueError, match="zip"):
        recorded.elementwise(lambda xp, x: (x, x))((out,), out)


# --- For GPUs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_every_kernel_compiles(recorded, arch):
    reason = no_nvrtc()
    if reason:
        pytest.skip(reason)
    names = {name for _, name in recorded.cupy.sources}
    assert names >= {f"xpmlp_{name}" for name in (*RULES, "fill_uniform", "take_rows",
                                                   "round_to_bfloat16")}  # fmt: skip
    binary = cubin(recorded.cupy.sources, arch, OPTIONS)
    assert binary.startswith(b"\x7fELF")
    for _, name in recorded.cupy.sources:
        assert name.encode() in binary


def test_products_and_sums_are_rounded_one_by_one(recorded):
    reason = no_nvrtc()
    if reason:
        pytest.skip(reason)
    mine = {key: n for key, n in recorded.cupy.sources.items() if key[1] == "xpmlp_momentum"}
    assert b"fma.rn" in cubin(mine, "compute_90", ())  # what the compiler would rather do
    assert b"fma.rn" not in cubin(mine, "compute_90", OPTIONS)


def test_rounding_to_bfloat16_does_not_flush_subnormals(recorded):
    reason = no_nvrtc()
    if reason:
        pytest.skip(reason)
    mine = {k: n for k, n in recorded.cupy.sources.items() if k[1] == "xpmlp_round_to_bfloat16"}
    assert mine
    assert b".ftz" not in cubin(mine, "compute_90", OPTIONS)  # it computes with integers alone


def test_errors_of_the_compiler_are_shown():
    reason = no_nvrtc()
    if reason:
        pytest.skip(reason)
    with pytest.raises(AssertionError, match="INFINITY"):
        cubin({('extern "C" __global__ void broken(float* x) { *x = INFINITY; }', "broken"): 0},
              "sm_90", ())  # fmt: skip


def test_cupy_without_a_driver_says_so():
    state = available_backends()["cupy"]
    assert state == "usable" or f"CuPy {cupy.__version__} finds no usable GPU" in state
