"""Finding an adapter: devices, fallback, reasons, entry points, transfers."""

import copy
import pickle
import sys
import types
from contextlib import contextmanager
from importlib.metadata import EntryPoint

import array_api_compat.numpy
import numpy as np
import pytest
from optional import optional

import xpmlp.backends as backends
from xpmlp import BackendUnavailableError, DeviceFallbackWarning, Network, available_backends
from xpmlp.backends import ReferenceBackend, backend_of, get_backend
from xpmlp.callbacks import EarlyStopping
from xpmlp.data import Batches
from xpmlp.layers import Dense, Dropout
from xpmlp.losses import Focal
from xpmlp.optimizers import Adam
from xpmlp.step import Dataset, TrainingStep
from xpmlp.training import fit

sparse = optional("scipy.sparse")

no_gpu = pytest.mark.skipif(
    available_backends()["cupy"] == "usable", reason="describes a machine without a GPU"
)


@pytest.fixture
def fresh_lookup(monkeypatch):
    """Adapters are looked up anew within the test."""
    caches = (backends._known, backends.backend_class)
    monkeypatch.setattr(backends, "_instances", dict(backends._instances))
    for cached in caches:
        cached.cache_clear()
    yield monkeypatch
    for cached in caches:
        cached.cache_clear()


def test_the_cpu_is_always_there():
    backend = get_backend("cpu")
    assert (backend.name, backend.device) == ("numpy", "cpu")
    assert get_backend("cpu", "numpy") is backend
    assert backend.version() == f"NumPy {np.__version__}"
    free, total = backend.memory()
    assert 0 < free <= total


@no_gpu
def test_auto_takes_the_cpu_without_a_gpu():
    assert get_backend("auto").device == "cpu"


@no_gpu
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_fallback_warns_once_and_says_why(device):
    with pytest.warns(DeviceFallbackWarning, match=f"device='{device}' .*CuPy.*CPU") as caught:
        network = Network(2, [Dense(1)], device=device)
    assert len(caught) == 1
    assert network.device == "cpu"


@no_gpu
def test_no_fallback_raises_with_the_same_reason():
    reason = available_backends()["cupy"]
    with pytest.raises(BackendUnavailableError) as caught:
        get_backend("cuda", fallback=False)
    assert reason in str(caught.value)
    with pytest.raises(BackendUnavailableError):
        Network(2, [Dense(1)], backend="cupy", fallback=False)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu:0", "", "CUDA", "cuda:"])
def test_unknown_devices(device):
    with pytest.raises(ValueError, match="is not known"):
        get_backend(device)


def test_an_adapter_answers_for_its_own_devices_only():
    with pytest.raises(ValueError, match="device='cpu' is not known to the cupy adapter"):
        get_backend("cpu", "cupy")
    with pytest.raises(ValueError, match="Did you mean 'cupy'"):
        get_backend("cuda", "cuppy")
    with pytest.raises(TypeError, match="device must be a string"):
        get_backend(0)


def fake_cupy(monkeypatch, devices, error=None):
    """A stand-in for CuPy as it is on a machine with other drivers and GPUs."""

    class CUDARuntimeError(RuntimeError):
        pass

    def count():
        if error:
            raise CUDARuntimeError(error)
        return devices

    module = types.ModuleType("cupy")
    runtime = types.SimpleNamespace(getDeviceCount=count, CUDARuntimeError=CUDARuntimeError)
    module.__version__ = "14.0"
    module.ones = np.ones
    module.cuda = types.SimpleNamespace(runtime=runtime)
    monkeypatch.setitem(sys.modules, "cupy", module)
    import xpmlp_cupy

    xpmlp_cupy._unavailable.cache_clear()
    monkeypatch.setattr(xpmlp_cupy, "_unavailable", xpmlp_cupy._unavailable.__wrapped__)


def test_the_reason_quotes_the_driver(fresh_lookup):
    fake_cupy(fresh_lookup, 0, "cudaErrorInsufficientDriver: too old")
    assert available_backends()["cupy"].endswith("(cudaErrorInsufficientDriver: too old)")


def test_a_machine_with_cupy_but_no_gpu(fresh_lookup):
    fake_cupy(fresh_lookup, 0)
    assert available_backends()["cupy"] == "CuPy 14.0 finds no GPU"


def test_an_index_beyond_the_gpus_falls_back_and_lists_them(fresh_lookup):
    fake_cupy(fresh_lookup, 2)
    with pytest.warns(DeviceFallbackWarning, match="it has only cuda:0, cuda:1"):
        assert get_backend("cuda:5").device == "cpu"


def test_a_broken_cupy_is_quoted(fresh_lookup):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "cupy":
                raise ImportError("libcudart.so.12: cannot open shared object file")

    fresh_lookup.delitem(sys.modules, "cupy", raising=False)
    fresh_lookup.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    import xpmlp_cupy

    fresh_lookup.setattr(xpmlp_cupy, "_unavailable", xpmlp_cupy._unavailable.__wrapped__)
    assert "libcudart.so.12" in available_backends()["cupy"]


class ThirdParty(ReferenceBackend):
    name = "third"
    library = "third_arrays"

    def __init__(self, device="abacus"):
        super().__init__(array_api_compat.numpy, device)

    @classmethod
    def devices(cls):
        return ("abacus",)

    @classmethod
    def accepts(cls, device):
        return device == "abacus"


def install(monkeypatch, value):
    point = EntryPoint("third", value, "xpmlp.backends")
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [point])
    module = types.ModuleType("third_party_adapter")
    module.Adapter = ThirdParty
    monkeypatch.setitem(sys.modules, "third_party_adapter", module)


def test_entry_points_add_adapters(fresh_lookup):
    install(fresh_lookup, "third_party_adapter:Adapter")
    assert available_backends()["third"] == "usable"
    assert get_backend("abacus").name == "third"
    assert Network(2, [Dense(1)], device="abacus").device == "abacus"


def test_a_broken_entry_point_is_reported_and_harms_nobody(fresh_lookup):
    install(fresh_lookup, "no_such_module:Adapter")
    assert "no_such_module" in available_backends()["third"]
    assert get_backend("cpu").name == "numpy"


def test_an_adapter_that_cannot_tell_its_devices_is_reported_and_harms_nobody(fresh_lookup):
    def devices():
        raise RuntimeError("no driver")

    fresh_lookup.setattr(ThirdParty, "devices", devices)
    install(fresh_lookup, "third_party_adapter:Adapter")
    assert "RuntimeError: no driver" in available_backends()["third"]
    assert get_backend("auto").name != "third"
    with pytest.raises(BackendUnavailableError, match="no driver"):
        get_backend("abacus", fallback=False)


def test_an_entry_point_without_its_class_harms_nobody(fresh_lookup):
    install(fresh_lookup, "third_party_adapter:Missing")
    assert "AttributeError" in available_backends()["third"]
    assert get_backend("cpu").name == "numpy"
    with pytest.raises(ValueError, match="device='abacus' is not known"):
        get_backend("abacus")


def test_an_adapter_that_cannot_be_opened_gives_way_with_its_reason(fresh_lookup):
    install(fresh_lookup, "third_party_adapter:Adapter")

    def broken(self, device="abacus"):
        raise RuntimeError("no beads")

    fresh_lookup.setattr(ThirdParty, "__init__", broken)
    with pytest.warns(DeviceFallbackWarning, match="third: RuntimeError: no beads"):
        assert get_backend("abacus").device == "cpu"


def test_a_pickle_of_a_cpu_network_opens_without_asking_cupy(fresh_lookup):
    import xpmlp_cupy

    def asked():
        raise AssertionError("CuPy was asked")

    pickled = pickle.dumps(Network(2, [Dense(1)], device="cpu"))
    fresh_lookup.setattr(xpmlp_cupy, "_unavailable", asked)
    assert pickle.loads(pickled).device == "cpu"


def test_the_cpu_is_found_without_asking_cupy(fresh_lookup):
    import xpmlp_cupy

    def asked():
        raise AssertionError("CuPy was asked")

    fresh_lookup.setattr(xpmlp_cupy, "_unavailable", asked)
    assert get_backend("cpu").name == "numpy"


class Entered(type(get_backend("cpu"))):
    """Refuses to allocate, copy or compute outside of its context, as a second GPU would."""

    depth = 0

    def context(self):
        @contextmanager
        def entered():
            self.depth += 1
            with np.errstate(all="ignore"):
                yield
            self.depth -= 1

        return entered()

    def elementwise(self, rule):
        kernel = super().elementwise(rule)

        def inside(*arguments):
            assert self.depth
            kernel(*arguments)

        return inside


def guarded(name):
    def call(self, *arguments):
        assert self.depth, name
        return getattr(super(Entered, self), name)(*arguments)

    return call


for _name in ("empty", "zeros", "copy", "matmul", "sum_columns", "total", "take_rows"):
    setattr(Entered, _name, guarded(_name))


def test_every_primitive_runs_in_the_context_of_its_device():
    backend = Entered()
    network = Network(2, [Dense(3, "relu"), Dropout(0.1), Dense(3, "softmax")], backend=backend)
    X, y = np.ones((7, 2)), np.arange(7) % 3
    network.parameters = np.ones(network.n_parameters)
    network.loss_and_grad(X, y, "log_loss", alpha=0.1, l1=0.1, sample_weight=np.ones(7))
    options = {"clip_norm": 1.0, "batch_size": 3, "sample_weight": np.ones(7), "epochs": 2}
    callbacks = [EarlyStopping(patience=1)]
    fit(network, X, y, loss="log_loss", validation=(X, y), callbacks=callbacks, **options)
    copy.deepcopy(network).predict(X)
    network.forward(X)
    network.trace(X)


def test_steps_of_sparse_rows_and_divided_penalties_run_in_that_context():
    backend = Entered()
    network = Network(2, [Dense(3, "relu"), Dense(3, "softmax")], backend=backend,
                      parameters=np.ones(21))  # fmt: skip
    X, y, weight = sparse.csr_array(np.eye(7, 2)), np.arange(7) % 3, np.ones(7)
    network.loss_and_grad(X, y, "focal", sample_weight=weight)
    fit(network, X, y, loss="focal", validation=(X, y), batch_size=3, epochs=2, verbose=0)
    for call in (network.predict, network.forward, network.trace):
        call(X)
    with backend.context():
        data = Dataset(network, X, y, weight, Focal())
        step = TrainingStep(network, Adam(), 3, data, 0.1, alpha_over_n=True)
        for indices in Batches(backend, 7, 3).epoch(0):
            step.forward(indices, 0, 0)
            step.backward()


@pytest.mark.parametrize("move", ["network", "state"])
def test_what_moves_to_a_device_enters_its_context(move):
    backend, cpu = Entered(), get_backend("cpu")
    if move == "network":
        assert Network(2, [Dense(1)], device="cpu").on(backend).backend is backend
    else:
        assert Adam().init(np.ones(3), backend=cpu).on(backend).backend is backend


def test_a_pickle_reopens_the_adapter_it_was_written_on():
    cpu = get_backend("cpu")
    assert backends.reopen("cpu", "numpy") is cpu
    with pytest.warns(DeviceFallbackWarning, match="the adapter 'abaci' is not installed") as seen:
        assert backends.reopen("abacus", "abaci") is cpu
    assert len(seen) == 1


@no_gpu
def test_a_pickle_from_a_gpu_opens_on_the_cpu_with_the_reason():
    with pytest.warns(DeviceFallbackWarning, match="device='cuda', backend='cupy' .*CuPy.*CPU"):
        assert backends.reopen("cuda", "cupy") is get_backend("cpu")


def test_an_unknown_library_gets_the_reference_adapter(backend):
    found = backend_of(backend.zeros((2,), "float32"))
    assert found.owns(backend.zeros((2,), "float32"))


def test_transfers_keep_values_and_dtype(backend):
    for dtype in ("float32", "float64", "uint8", "int64", "bool"):
        x = np.arange(6).reshape(2, 3).astype(dtype)
        there = backend.from_host(x)
        assert backend.owns(there)
        back = backend.to_host(there)
        assert back.dtype == x.dtype
        np.testing.assert_array_equal(back, x)
    assert not backend.owns([1.0])


def test_foreign_number_formats_become_standard_ones():
    host = get_backend("cpu")
    assert host.from_host(np.ones(2, ">f8")).dtype == np.dtype("float64")
    assert host.from_host(np.ones(2, "float16")).dtype == np.dtype("float32")
    assert host.from_host(np.ones(2, "longdouble")).dtype == np.dtype("float64")
    assert host.from_host(np.ones(2, ">i4")).dtype == np.dtype("int32")


def test_a_network_takes_an_opened_backend_but_no_contradiction(backend):
    assert Network(2, [Dense(1)], backend=backend).backend is backend
    assert Network(2, [Dense(1)], backend=backend, device=backend.device).backend is backend
    with pytest.raises(ValueError, match="device='cuda:7' contradicts"):
        Network(2, [Dense(1)], backend=backend, device="cuda:7")
