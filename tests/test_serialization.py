"""Model files: what is written is read back, and nothing else is accepted."""

import json
import os
import stat
from dataclasses import dataclass

import numpy as np
import pytest
from safetensors import safe_open

import xpmlp
from xpmlp import Dense, Dropout, ModelFileError, Network
from xpmlp.activations import ACTIVATIONS, ELU
from xpmlp.initializers import INITIALIZERS, Normal
from xpmlp.serialization import read_model, write_atomically, write_model

X = np.random.default_rng(0).standard_normal((6, 3))


def make(dtype="float64", backend="numpy"):
    layers = [Dense(4, ELU(0.5), init=Normal(0.3)), Dropout(0.25), Dense(2, "softmax", bias=False)]
    return Network(3, layers, dtype=dtype, backend=backend, seed=7)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_round_trip(tmp_path, backend, dtype):
    network = make(dtype, backend)
    write_model(tmp_path / "m", network, {"extra": X}, {"note": ["a", 1]})
    loaded, tensors, description = read_model(tmp_path / "m", "cpu")
    assert loaded.layers == network.layers
    assert (loaded.dtype, loaded.seed, loaded.n_features) == (dtype, 7, 3)
    np.testing.assert_array_equal(loaded.parameters, backend.to_host(network.parameters))
    np.testing.assert_array_equal(tensors["extra"], X)
    assert description["note"] == ["a", 1]


def test_save_and_load(tmp_path, backend):
    network = make(backend=backend)
    xpmlp.save(network, tmp_path / "m")
    np.testing.assert_array_equal(xpmlp.load(tmp_path / "m").predict(X), make().predict(X))
    with pytest.raises(TypeError, match="network must be a Network, got 3"):
        xpmlp.save(3, tmp_path / "m")


def test_what_could_not_be_read_again_is_not_saved(tmp_path):
    @dataclass(frozen=True)
    class Swoosh(ELU):
        name = "swoosh"

    network = Network(3, [Dense(2, Swoosh())], device="cpu")
    with pytest.raises(ValueError, match=r"Swoosh.* is not one of the library's own"):
        xpmlp.save(network, tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("init", sorted(INITIALIZERS))
def test_every_name_survives(tmp_path, activation, init):
    network = Network(3, [Dense(2, activation, init=init)], device="cpu")
    write_model(tmp_path / "m", network, {}, {})
    assert read_model(tmp_path / "m", "cpu")[0].layers == network.layers


def test_an_old_file_stays_whole_when_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "m"
    write_atomically(path, b"old")

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*m'"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["m"]


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "m", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "m").stat().st_mode) == 0o640


def test_a_broken_network_is_not_saved(tmp_path):
    network = make()
    network.parameters[3] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        write_model(tmp_path / "m", network, {}, {})
    assert not (tmp_path / "m").exists()


def test_links_are_followed_and_pipes_are_written_to(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(tmp_path / "pipe", b"through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_an_interrupt_leaves_no_half_a_file(tmp_path, monkeypatch):
    def interrupted(fd):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "m", b"new")
    assert os.listdir(tmp_path) == []


def test_a_wrong_device_is_no_fault_of_the_file(tmp_path):
    xpmlp.save(make(), tmp_path / "m")
    with pytest.raises(ValueError, match="device='gpu' is not known"):
        xpmlp.load(tmp_path / "m", device="gpu")


def test_numpy_numbers_in_layers_are_saved(tmp_path):
    network = Network(3, [Dense(2, ELU(np.float32(0.5)))], device="cpu")
    xpmlp.save(network, tmp_path / "m")
    assert xpmlp.load(tmp_path / "m", "cpu").layers[0].activation.alpha == 0.5


def test_parameters_that_are_not_finite_are_refused(tmp_path):
    from safetensors.numpy import load_file, save_file

    xpmlp.save(make(), tmp_path / "m")
    tensors = load_file(tmp_path / "m")
    tensors["parameters"][0] = np.nan
    with safe_open(tmp_path / "m", framework="numpy") as file:
        metadata = file.metadata()
    save_file(tensors, tmp_path / "m", metadata)
    with pytest.raises(ModelFileError, match="NaN or infinite"):
        xpmlp.load(tmp_path / "m")


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_model(tmp_path / "none")


def rewrite(path, change):
    """Change the description of a written file."""
    from safetensors.numpy import save

    with safe_open(path, framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        description = json.loads(file.metadata()["xpmlp"])
    change(description)
    path.write_bytes(save(tensors, metadata={"xpmlp": json.dumps(description)}))


def drop(key):
    return lambda description: description.pop(key)


def put(key, value):
    return lambda description: description.update({key: value})


@pytest.mark.parametrize(
    "change",
    [
        *(drop(key) for key in ("format", "layers", "n_features", "dtype", "seed")),
        put("format", 99),
        put("layers", []),
        put("layers", [{"type": "os.system"}]),
        put("layers", [{"type": "Dense", "units": 2}]),
        put("layers", 3),
        put("n_features", 4),
        put("n_features", "3"),
        put("n_features", 10**400),
        put(
            "layers",
            [
                {
                    "type": "Dense",
                    "units": 10**12,
                    "activation": {"name": "relu"},
                    "bias": True,
                    "init": {"name": "zeros"},
                }
            ],
        ),
        put("dtype", "float32"),
        put("dtype", "object"),
        lambda d: d["layers"][0]["activation"].update(name="__import__"),
        lambda d: d["layers"][0]["activation"].update(slope=3),
        lambda d: d["layers"][1].update(rate=2.0),
    ],
)
def test_changed_descriptions_are_refused(tmp_path, change):
    path = tmp_path / "m"
    write_model(path, make(), {}, {})
    rewrite(path, change)
    with pytest.raises(ModelFileError, match="m "):
        read_model(path, "cpu")


@pytest.mark.parametrize("content", [b"", b"x", b"\x80\x04K\x01.", b"\xff" * 64, b"PK\x03\x04"])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(ModelFileError):
        read_model(tmp_path / "m")


def test_truncated_files_are_refused(tmp_path):
    path = tmp_path / "m"
    write_model(path, make(), {}, {})
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelFileError):
            read_model(path, "cpu")
