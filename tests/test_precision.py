"""bfloat16 on every backend that offers it: products of rounded operands, and nothing else."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
from conftest import BACKENDS
from primitive_cases import LAYOUTS, edge_values, normal
from xpmlp_torch import TorchBackend

import xpmlp
from xpmlp import Dense, Dropout, Network, fit
from xpmlp.backends import ReferenceBackend, get_backend
from xpmlp.optimizers import Adam
from xpmlp.testing import SUMS as LEAST
from xpmlp.testing import assert_close, check_backend, round_to_bfloat16
from xpmlp.verify import verify

HOST = get_backend("cpu", "numpy")
OFFERING = {key: each for key, each in BACKENDS.items() if "bfloat16" in each.precisions}
SUMS = LEAST["bfloat16"]


@pytest.fixture(params=list(OFFERING))
def backend(request):
    return OFFERING[request.param]


def product(backend, a, b, precision="bfloat16"):
    on = backend.with_precision(precision)
    with on.context():
        out = on.empty((*a.shape[:-1], b.shape[-1]), str(a.dtype))
        on.matmul(on.from_host(a), on.from_host(b), out)
        return on.to_host(out)


# --- Products -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 5, 3), (64, 300, 33), (3, 7, 5, 4)])
@pytest.mark.parametrize("layouts", [(a, b) for a in LAYOUTS for b in LAYOUTS], ids=" by ".join)
def test_a_product_is_that_of_rounded_operands(backend, shape, layouts):
    *leading, n, k, m = shape
    a = LAYOUTS[layouts[0]](normal((*leading, n, k), "float32", 1))
    b = LAYOUTS[layouts[1]](normal((*leading, k, m), "float32", 2))
    exact = round_to_bfloat16(a).astype("float64") @ round_to_bfloat16(b).astype("float64")
    got = product(backend, a, b)
    assert_close(got, exact.astype("float32"), SUMS, "the product")
    ieee = product(backend, a, b, "ieee")
    assert_close(ieee, (a.astype("float64") @ b).astype("float32"), SUMS, "the IEEE product")
    assert 1e-4 < np.abs(got - ieee).max() / np.abs(ieee).max() < 1e-2


def test_special_values(backend):
    values = np.concatenate([edge_values("float32"), np.float32([1.00390625, 1.01171875, 3.4e38])])
    got = product(backend, values[:, None], np.ones((1, 1), "float32"))[:, 0]
    expected = round_to_bfloat16(values)
    # GPUs may take subnormals for zero.
    small = np.abs(expected) < np.finfo("float32").smallest_normal
    np.testing.assert_array_equal(got[~small], expected[~small])
    assert (np.abs(got[small]) <= np.abs(expected[small])).all()
    assert got[-3:].tolist() == [1.0, 1.015625, math.inf]  # to the even one, and over the top


def test_float64_is_computed_as_it_is(backend):
    if "float64" not in [policy.parameter for policy in backend.policies]:
        pytest.skip("no float64")
    a, b = normal((30, 20)), normal((20, 10), seed=1)
    np.testing.assert_array_equal(product(backend, a, b), product(backend, a, b, "ieee"))


def test_the_check_of_an_adapter_covers_it(backend, monkeypatch):
    check_backend(backend)
    monkeypatch.setattr("xpmlp.product_checks.round_to_bfloat16", lambda x: x)
    with pytest.raises(AssertionError, match=r"matmul .* in bfloat16"):
        check_backend(backend)


def test_the_definition_is_pytorchs():
    torch = pytest.importorskip("torch")
    upper, lower = np.meshgrid(np.arange(1 << 16), [0, 1, 0x7FFF, 0x8000, 0x8001], indexing="ij")
    x = (upper << 16 | lower).astype("uint32").view("float32")
    expected = torch.from_numpy(x.copy()).bfloat16().float().numpy()
    rounded = round_to_bfloat16(x)
    np.testing.assert_array_equal(rounded, expected)
    number = ~np.isnan(x)
    assert (np.signbit(rounded) == np.signbit(expected))[number].all()


# --- Networks -----------------------------------------------------------------------------------


def make(backend, **options):
    layers = [Dense(16, "tanh"), Dropout(0.1), Dense(1, "sigmoid")]
    return Network(2, layers, backend=backend, dtype="float32", seed=1, **options)


def xor():
    X = normal((200, 2), "float32", 5)
    return X, (X[:, 0] * X[:, 1] > 0).astype(int)


def test_training_converges_on_float32_parameters(backend):
    found = {}
    for precision in ("ieee", "bfloat16"):
        network = make(backend, precision=precision)
        losses = fit(network, *xor(), loss="log_loss", optimizer=Adam(0.02), epochs=60,
                     batch_size=20, verbose=0)["loss"]  # fmt: skip
        assert losses[-1] < 0.5 * losses[0]
        found[precision] = network.backend.to_host(network.parameters)
        assert found[precision].dtype == "float32"
        assert ((network.predict(xor()[0])[:, 0] > 0.5) == xor()[1]).mean() > 0.9
    # The parameters themselves are never rounded, and the runs are not the same one.
    assert (round_to_bfloat16(found["bfloat16"]) != found["bfloat16"]).mean() > 0.9
    assert not np.array_equal(found["ieee"], found["bfloat16"])


def test_an_estimator_hands_it_on(backend):
    from xpmlp import MLPClassifier  # takes scikit-learn

    X, y = xor()
    model = MLPClassifier((8,), backend=backend, precision="bfloat16", max_iter=3, random_state=0)
    with pytest.warns(match="Maximum|maximum|converge"):
        model.fit(X, y)
    assert model.network_.precision == model.network_.backend.precision == "bfloat16"


def test_copies_pickles_and_files_keep_it(backend, tmp_path, monkeypatch):
    network = make(backend, precision="bfloat16")
    xpmlp.save(network, tmp_path / "m")
    monkeypatch.setattr("xpmlp.serialization.get_backend", lambda device: backend)
    opened = xpmlp.load(tmp_path / "m")
    for each in (opened, copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert each.precision == each.backend.precision == "bfloat16"
        np.testing.assert_array_equal(each.predict(xor()[0]), network.predict(xor()[0]))


def test_a_device_without_it_computes_by_ieee_754(backend, tmp_path):
    network = make(backend, precision="bfloat16")
    xpmlp.save(network, tmp_path / "m")
    for each in (xpmlp.load(tmp_path / "m", "cpu"), network.on(HOST)):
        assert each.backend is HOST
        assert each.precision == "bfloat16"  # what was asked for is not forgotten
        xpmlp.save(each, tmp_path / "n")
        for path in ("m", "n"):
            assert (tmp_path / path).read_bytes() == (tmp_path / "m").read_bytes()
        assert each.on(backend).backend.precision == "bfloat16"


def test_a_fallback_computes_by_ieee_754(backend):
    if get_backend("cpu").name != "numpy" or xpmlp.available_backends()["cupy"] == "usable":
        pytest.skip("the fallback is not taken")
    with pytest.warns(xpmlp.DeviceFallbackWarning):
        network = Network(2, [Dense(1)], backend="cupy", dtype="float32", precision="tf32")
    assert network.backend is HOST
    assert network.precision == "tf32"


def test_an_opened_adapter_says_how_it_computes(backend):
    rounded = backend.with_precision("bfloat16")
    assert repr(rounded).endswith(" in bfloat16>")
    assert make(rounded).backend is rounded
    assert pickle.loads(pickle.dumps(rounded)) is rounded
    with pytest.raises(ValueError, match="precision='ieee' contradicts backend="):
        make(rounded, precision="ieee")
    report = verify({"one": backend, "other": rounded}, steps=1, dtypes=["float32"])
    assert report.comparisons[0].one_step > 1e-4


def test_it_is_for_float32(backend):
    with pytest.raises(ValueError, match="rounds products of float32, got dtype='float64'"):
        Network(2, [Dense(1)], backend=backend, precision="bfloat16")


def test_threads_that_ask_first_get_one_adapter(monkeypatch):
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    start = Barrier(8)

    class Two(ReferenceBackend):
        precisions = ("ieee", "rounded")

    def ask(adapter):
        start.wait()
        found = adapter.with_precision("rounded")
        return found, found.precision, found.xp

    with ThreadPoolExecutor(8) as pool:
        for _ in range(30):
            adapter = Two(HOST.xp)
            found = {*pool.map(ask, [adapter] * 8)}
            assert len(found) == 1
            assert found.pop()[1:] == ("rounded", HOST.xp)


def test_an_unknown_precision_lists_what_there_is(backend):
    known = ", ".join(map(repr, backend.precisions))
    assert "'bfloat16'" in known
    with pytest.raises(ValueError, match=f"^precision must be one of {known} on .*, got 'float16'"):
        make(backend, precision="float16")
    with pytest.raises(ValueError, match=r"^precision must be one of 'ieee' on .*, got 'bfloat16'"):
        make(HOST, precision="bfloat16")


# --- PyTorch on a GPU, acted out ----------------------------------------------------------------


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def matrices(torch, *leading):
    return [torch.tensor(normal((*leading, *shape), "float32")) for shape in ((4, 5), (5, 3))]


def test_where_pytorch_sums_in_float32_it_multiplies_bfloat16(torch, monkeypatch):
    seen = []

    def mm(a, b, *, out_dtype, out=None):
        seen.append((a.dtype, b.dtype, out_dtype, a.shape))
        return torch.matmul(a.float(), b.float(), out=out)

    monkeypatch.setattr(torch, "mm", mm)
    for leading, expected in [((), [(4, 5)]), ((2,), [])]:
        fast = TorchBackend("cpu").with_precision("bfloat16")
        a, b = matrices(torch, *leading)
        out = torch.empty((*leading, 4, 3))
        seen.clear()
        fast.matmul(a, b, out)
        fast.matmul(a, b, out)
        (_, *used) = seen  # the first is a trial
        assert [x[-1] for x in used] == 2 * expected
        assert {x[:-1] for x in seen} == {(torch.bfloat16, torch.bfloat16, torch.float32)}
        assert torch.allclose(out, a.bfloat16().float() @ b.bfloat16().float(), atol=1e-6)


@pytest.mark.parametrize("error", [TypeError, RuntimeError, NotImplementedError])
def test_where_it_does_not_operands_are_rounded(torch, monkeypatch, error):
    def mm(*arguments, **options):
        raise error

    monkeypatch.setattr(torch, "mm", mm)
    (a, b), out = matrices(torch), torch.empty((4, 3))
    TorchBackend("cpu").with_precision("bfloat16").matmul(a, b, out)
    assert torch.allclose(out, a.bfloat16().float() @ b.bfloat16().float(), atol=1e-6)
