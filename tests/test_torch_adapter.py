"""What no other test sees of the PyTorch adapter: switches, errors, and other devices acted out."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from xpmlp_torch import TorchBackend

from xpmlp import DeviceMemoryError

torch = pytest.importorskip("torch")


@pytest.fixture
def backend():
    return TorchBackend("cpu")


SETTINGS = [
    "torch.set_float32_matmul_precision('medium')",
    "torch.backends.cuda.matmul.allow_tf32 = True",
    "torch.backends.fp32_precision = 'tf32'",
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "torch.backends.mkldnn.fp32_precision = 'bf16'",
    "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
    "torch.set_float32_matmul_precision('high'); "
    "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
]
PROBE = """
import sys
import numpy as np
import torch
from xpmlp import Dense, Network, get_backend

def settings():
    found = []
    for read in (
        torch.get_float32_matmul_precision,
        lambda: torch.backends.cuda.matmul.allow_tf32,
        lambda: torch.backends.fp32_precision,
        lambda: torch.backends.cuda.matmul.fp32_precision,
        lambda: torch.backends.mkldnn.matmul.fp32_precision,
    ):
        try:
            found.append(read())
        except (AttributeError, RuntimeError):  # older, or old and new ones are mixed
            found.append("raises")
    return found

def product():
    with backend.context(), backend.context():
        if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
            assert torch.backends.cuda.matmul.fp32_precision in ("ieee", "none")
            assert torch.backends.mkldnn.matmul.fp32_precision in ("ieee", "none")
        else:
            assert torch.get_float32_matmul_precision() == "highest"
        out = backend.empty((256, 256), "float32")
        backend.matmul(backend.from_host(a), backend.from_host(a), out)
        return backend.to_host(out).copy()

backend = get_backend("cpu", "torch")
a = np.random.default_rng(0).standard_normal((256, 256)).astype("float32")
expected = product()
exec(sys.argv[1])
before = settings()
assert (product() == expected).all()
Network(256, [Dense(4)], backend="torch", device="cpu", dtype="float32").predict(a)
assert settings() == before, (before, settings())
if "backends.fp32_precision" in sys.argv[1]:  # what it says is what holds, before and after
    torch.backends.fp32_precision = "ieee"
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"
"""


@pytest.mark.parametrize("setting", SETTINGS)
def test_no_setting_of_the_process_rounds_products(setting):
    if ".fp32_precision" in setting and not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this PyTorch has no fp32_precision")
    # A process of its own: PyTorch remembers whether old and new settings were mixed.
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROBE, setting], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


class OldBackends:
    """torch.backends as it was before 2.9."""

    class cuda:
        matmul = type("cuBLASModule", (), {"allow_tf32": False})()


def test_an_older_pytorch_has_one_switch(backend, monkeypatch):
    monkeypatch.setattr(torch, "backends", OldBackends)
    for switch in ("highest", "medium"):
        torch.set_float32_matmul_precision(switch)
        try:
            with backend.context():
                assert torch.get_float32_matmul_precision() == "highest"
            assert torch.get_float32_matmul_precision() == switch
        finally:
            torch.set_float32_matmul_precision("highest")


def test_threads_leave_the_settings_as_they_were(backend):
    def work(_):
        for _ in range(50):
            with backend.context(), backend.context():
                if rounds():
                    return False
        return True

    torch.set_float32_matmul_precision("high")
    try:
        assert rounds()
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(8)))
        assert torch.get_float32_matmul_precision() == "high"
        assert rounds()
    finally:
        torch.set_float32_matmul_precision("highest")


def rounds():
    """Whether PyTorch would round the operands of a product on a GPU."""
    product = torch.backends.cuda.matmul
    if hasattr(product, "fp32_precision"):
        return product.fp32_precision == "tf32"
    return torch.get_float32_matmul_precision() != "highest"


def full(*arguments, **options):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")


def test_short_memory_is_one_error(backend, monkeypatch):
    x = np.ones((3, 5), "float32")
    monkeypatch.setattr(torch, "as_tensor", full)
    with pytest.raises(DeviceMemoryError, match="an array of 60 bytes does not fit on cpu"):
        backend.from_host(x)
    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(DeviceMemoryError, match="an array of 48 bytes"):
        backend.empty((3, 2), "float64")
    monkeypatch.setattr(torch.Tensor, "bfloat16", full)
    operand = torch.ones((2, 2))
    with pytest.raises(DeviceMemoryError, match="an array of 16 bytes"):
        backend.with_precision("bfloat16").matmul(operand, operand, torch.ones((2, 2)))


@pytest.mark.parametrize(
    ("function", "primitive", "n_bytes"),
    [
        ("index_select", lambda b, x, out: b.take_rows(x, torch.tensor([0, 1]), out), 64),
        ("matmul", lambda b, x, out: b.matmul(x[:, :2], x[:2], torch.ones(4, 4)), 64),
        ("sum", lambda b, x, out: b.sum_rows(x, torch.ones(4, 1)), 16),
        ("exp", lambda b, x, out: b.elementwise(lambda xp, x: xp.exp(x))((out,), x), 64),
        ("sum", lambda b, x, out: b.total(x, torch.ones((), dtype=torch.float64)), 128),
    ],
)
def test_short_memory_inside_a_primitive_is_that_error(monkeypatch, function, primitive, n_bytes):
    monkeypatch.setattr(torch, function, full)
    monkeypatch.setattr("array_api_compat.torch." + function, full)
    with pytest.raises(DeviceMemoryError, match=f"an array of {n_bytes} bytes does not fit on cpu"):
        primitive(TorchBackend("cpu"), torch.ones((4, 4)), torch.ones((4, 4)))


def test_the_cpus_own_shortage_is_that_error(backend):
    with pytest.raises(DeviceMemoryError, match="an array of 800,000,000,000,000,000 bytes"):
        backend.empty((10**17,), "float64")


@pytest.mark.parametrize(
    "message",
    [
        "device-side assert triggered",
        "CUDA error: an illegal memory access was encountered",
        "unsupported memory format option Contiguous",
    ],
)
def test_other_errors_stay_what_they_are(backend, monkeypatch, message):
    def broken(*arguments, **options):
        raise RuntimeError(message)

    monkeypatch.setattr(torch, "as_tensor", broken)
    with pytest.raises(RuntimeError, match=message):
        backend.from_host(np.ones(3))
    monkeypatch.setattr(torch, "matmul", broken)
    with pytest.raises(RuntimeError, match=message):
        backend.matmul(torch.ones(2, 2), torch.ones(2, 2), torch.ones(2, 2))


@pytest.mark.parametrize("message", ["CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"])
def test_cudas_own_allocations_are_memory(backend, monkeypatch, message):
    def short(*arguments, **options):
        raise RuntimeError(message)

    monkeypatch.setattr(torch, "matmul", short)
    with pytest.raises(DeviceMemoryError):
        backend.matmul(torch.ones(2, 2), torch.ones(2, 2), torch.ones(2, 2))


@pytest.fixture
def acted(monkeypatch):
    """An adapter on a device that is not here, whose tensors are the CPU's."""

    def open_on(device):
        real = torch.empty
        monkeypatch.setattr(torch, "empty", lambda *shape, device=None, **o: real(*shape, **o))
        return TorchBackend(device)

    return open_on


def test_apples_gpu_has_no_float64(acted):
    on = acted("mps")
    assert [policy.parameter for policy in on.policies] == ["float32"]
    assert on.policies[0].accumulate == "float32"
    assert on.immediate is False
    assert str(on.from_host(np.ones(3)).dtype) == "torch.float32"
    assert str(on.from_host(np.ones(3, "int64")).dtype) == "torch.int64"


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_waiting_is_for_the_device_itself(acted, monkeypatch, kind):
    waited = []
    on = acted(f"{kind}:1")
    on.xp_device = torch.device(kind, 1)
    monkeypatch.setattr(getattr(torch, kind), "synchronize", waited.append)
    on.synchronize()
    assert waited == [torch.device(kind, 1)]
    assert on.immediate is False


def test_devices_are_listed_best_first(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert TorchBackend.devices() == ("cuda:0", "cuda:1", "xpu:0", "mps", "cpu")
    for device in ("cuda", "cuda:3", "xpu:0", "mps", "cpu"):
        assert TorchBackend.accepts(device)
    for device in ("cuda:x", "mps:0", "tpu", "cpu:0"):
        assert not TorchBackend.accepts(device)
