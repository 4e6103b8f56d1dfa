"""What no other test sees of the PyTorch adapter: switches, errors, and other devices acted out."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from xpmlp_torch import TorchBackend

from xpmlp import DeviceMemoryError

torch = pytest.importorskip("torch")


@pytest.fixture
def backend():
    return TorchBackend("cpu")


def test_no_switch_of_the_process_rounds_products(backend):
    a = np.random.default_rng(0).standard_normal((64, 64)).astype("float32")
    out = backend.empty((64, 64), "float32")
    found = []
    for switch in ("highest", "medium"):
        torch.set_float32_matmul_precision(switch)
        try:
            with backend.context():
                assert torch.get_float32_matmul_precision() == "highest"
                backend.matmul(backend.from_host(a), backend.from_host(a), out)
            assert torch.get_float32_matmul_precision() == switch
        finally:
            torch.set_float32_matmul_precision("highest")
        found.append(out.numpy().copy())
    np.testing.assert_array_equal(*found)


def test_threads_leave_the_switch_as_it_was(backend):
    def work(_):
        for _ in range(50):
            with backend.context(), backend.context():
                if torch.get_float32_matmul_precision() != "highest":
                    return False
        return True

    torch.set_float32_matmul_precision("high")
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(8)))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


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
    with pytest.raises(DeviceMemoryError, match="an array of 8 bytes"):
        backend.with_precision("bfloat16").matmul(operand, operand, torch.ones((2, 2)))


def test_other_errors_stay_what_they_are(backend, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("device-side assert triggered")

    monkeypatch.setattr(torch, "as_tensor", broken)
    with pytest.raises(RuntimeError, match="device-side assert"):
        backend.from_host(np.ones(3))


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
