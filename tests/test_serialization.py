"""Model files: what is written is read back, and nothing else is accepted."""

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import xpmlp
from xpmlp import (
    Dense,
    Dropout,
    EarlyStopping,
    MLPClassifier,
    MLPRegressor,
    ModelFileError,
    Network,
    NonFiniteLossError,
)
from xpmlp.activations import ACTIVATIONS, ELU
from xpmlp.files import decode, encode, read_tensors, write_atomically, write_tensors
from xpmlp.initializers import INITIALIZERS, Normal
from xpmlp.optimizers import SGD, Adam
from xpmlp.schedules import Cosine

X = np.random.default_rng(0).standard_normal((6, 3))


def make(dtype="float64", backend="numpy"):
    layers = [Dense(4, ELU(0.5), init=Normal(0.3)), Dropout(0.25), Dense(2, "softmax", bias=False)]
    return Network(3, layers, dtype=dtype, backend=backend, seed=7)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_round_trip(tmp_path, backend, dtype):
    network = make(dtype, backend)
    xpmlp.save(network, tmp_path / "m")
    loaded = xpmlp.load(tmp_path / "m", "cpu")
    assert loaded.layers == network.layers
    assert (loaded.dtype, loaded.seed, loaded.n_features) == (dtype, 7, 3)
    np.testing.assert_array_equal(loaded.parameters, backend.to_host(network.parameters))


def test_save_and_load(tmp_path, backend):
    network = make(backend=backend)
    xpmlp.save(network, tmp_path / "m")
    np.testing.assert_array_equal(xpmlp.load(tmp_path / "m").predict(X), make().predict(X))
    with pytest.raises(TypeError, match=r"model must be a Network, an MLPClassifier .*, got 3"):
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
    xpmlp.save(network, tmp_path / "m")
    assert xpmlp.load(tmp_path / "m", "cpu").layers == network.layers


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


@pytest.mark.skipif(os.name != "posix", reason="folders cannot be synchronised")
def test_the_file_and_its_name_survive_a_loss_of_power(tmp_path, monkeypatch):
    synchronised = []
    monkeypatch.setattr(os, "fsync", lambda fd: synchronised.append(os.fstat(fd).st_ino))
    write_atomically(tmp_path / "m", b"new")
    assert synchronised == [(tmp_path / "m").stat().st_ino, tmp_path.stat().st_ino]


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
        xpmlp.save(network, tmp_path / "m")
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


def test_pipes_and_devices_are_not_waited_for(tmp_path):
    from xpmlp.datasets import load_table

    os.mkfifo(tmp_path / "pipe")
    for name, target in (("m", "pipe"), ("d.csv", "pipe"), ("d.npy", "pipe"), ("z.csv", None)):
        (tmp_path / name).symlink_to(tmp_path / target if target else "/dev/zero")
        for read in (xpmlp.load, xpmlp.checkpoint.read_checkpoint):
            with pytest.raises(ModelFileError, match="is no regular file"):
                read(tmp_path / name)
        if "." in name:
            with pytest.raises(ValueError, match="is no regular file"):
                load_table(str(tmp_path / name))
    with pytest.raises(IsADirectoryError):
        xpmlp.load(tmp_path)


def test_a_path_may_be_bytes(tmp_path):
    path = os.fsencode(tmp_path / "m")
    xpmlp.save(make(), path)
    xpmlp.save(make(), path)
    assert os.listdir(tmp_path) == ["m"]
    np.testing.assert_array_equal(xpmlp.load(path, "cpu").parameters, make().parameters)


def test_a_wrong_device_is_no_fault_of_the_file(tmp_path):
    xpmlp.save(make(), tmp_path / "m")
    with pytest.raises(ValueError, match="device='gpu' is not known"):
        xpmlp.load(tmp_path / "m", device="gpu")


def test_numpy_numbers_in_layers_are_saved(tmp_path):
    network = Network(3, [Dense(2, ELU(np.float32(0.5)))], device="cpu")
    xpmlp.save(network, tmp_path / "m")
    assert xpmlp.load(tmp_path / "m", "cpu").layers[0].activation.alpha == 0.5


def test_parameters_that_are_not_finite_are_refused(tmp_path):
    xpmlp.save(make(), tmp_path / "m")
    tensors, description = read_tensors(tmp_path / "m")
    tensors["parameters"][0] = np.nan
    write_tensors(tmp_path / "m", tensors, description)
    with pytest.raises(ModelFileError, match="NaN or infinite"):
        xpmlp.load(tmp_path / "m")


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        xpmlp.load(tmp_path / "none")


def rewrite(path, change):
    """Change the description of a written file, and sign it anew."""
    tensors, description = read_tensors(path)
    change(description)
    write_tensors(path, tensors, description)


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
        put("n_features", 10**38),
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
    xpmlp.save(make(), path)
    rewrite(path, change)
    with pytest.raises(ModelFileError, match="m "):
        xpmlp.load(path, "cpu")


@pytest.mark.parametrize("content", [b"", b"x", b"\x80\x04K\x01.", b"\xff" * 64, b"PK\x03\x04"])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(ModelFileError):
        xpmlp.load(tmp_path / "m")


def test_truncated_files_are_refused(tmp_path):
    path = tmp_path / "m"
    xpmlp.save(make(), path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelFileError):
            xpmlp.load(path, "cpu")


# --- One digest of every byte --------------------------------------------------------------------


def test_every_changed_byte_is_found(tmp_path, rng):
    path = tmp_path / "m"
    xpmlp.save(make(), path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        with pytest.raises(ModelFileError, match=r"m is not a model file of xpmlp, or is damaged"):
            xpmlp.load(path, "cpu")
    path.write_bytes(whole + b"\0")
    with pytest.raises(ModelFileError, match="digest"):
        xpmlp.load(path, "cpu")


def test_a_file_of_this_format_needs_its_digest(tmp_path):
    from safetensors.numpy import load_file, save_file

    path = tmp_path / "m"
    xpmlp.save(make(), path)
    tensors, description = load_file(path), read_tensors(path)[1]
    del description["sha256"]
    save_file(tensors, path, {"xpmlp": json.dumps(description)})
    with pytest.raises(ModelFileError, match="it has no digest"):
        xpmlp.load(path, "cpu")


def test_nothing_is_named_twice(tmp_path):
    path = tmp_path / "m"
    text = '{\\"format\\": 1, \\"format\\": 1}'
    header = b'{"__metadata__":{"xpmlp":"' + text.encode() + b'"}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ModelFileError, match="names something twice"):
        xpmlp.load(path, "cpu")


def test_text_that_looks_like_a_digest_does_no_harm(tmp_path):
    labels = np.array(['"sha256": "' + "0" * 64 + '"', "b"])
    model = MLPClassifier((3,), max_iter=1, solver="sgd", random_state=0)
    with pytest.warns(UserWarning, match="converged"):
        model.fit(X, labels[[0, 1, 0, 1, 0, 1]])
    xpmlp.save(model, tmp_path / "m")
    np.testing.assert_array_equal(xpmlp.load(tmp_path / "m", "cpu").classes_, labels)


def test_the_same_model_is_the_same_file(tmp_path):
    xpmlp.save(make(), tmp_path / "a")
    xpmlp.save(make(), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_too_long_a_description_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("xpmlp.files.MAX_HEADER", 300)
    with pytest.raises(ValueError, match="a file has room for 300"):
        xpmlp.save(make(), tmp_path / "m")
    assert os.listdir(tmp_path) == []


# --- What would take long, or could not be computed with ------------------------------------------


def deep(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (deep(100), "more than 64 levels deep"),
        (deep(500), "more than 64 levels deep"),
        (deep(900), "damaged"),
        ([10**400], "more than 128 bits"),
        ({"\ud800": 1}, "surrogates not allowed"),
        (float("inf"), "a number is inf"),
        (float("nan"), "a number is nan"),
    ],
    ids=str,
)
def test_plain_data_is_bounded(tmp_path, monkeypatch, value, message):
    with pytest.raises(ValueError, match=message if message != "damaged" else "deep"):
        write_tensors(tmp_path / "m", {}, {"seed": value})
    assert os.listdir(tmp_path) == []
    monkeypatch.setattr("xpmlp.files._check_plain", lambda value: None)
    dumps = json.dumps
    monkeypatch.setattr(json, "dumps", lambda value, allow_nan: dumps(value))
    write_tensors(tmp_path / "m", {}, {"seed": value})
    monkeypatch.undo()
    with pytest.raises(ModelFileError, match=message):
        xpmlp.load(tmp_path / "m", "cpu")


def test_seeds_of_many_bits_survive(tmp_path):
    xpmlp.save(Network(1, [Dense(1)], seed=2**128 - 1, device="cpu"), tmp_path / "m")
    assert xpmlp.load(tmp_path / "m", "cpu").seed == 2**128 - 1


@pytest.mark.parametrize("key", [(2**61 - 1) * 2**9, {"tuple": [(2**61 - 1)]}, None, []])
def test_keys_of_one_hash_are_refused(key):
    with pytest.raises(ValueError, match="a key must be text or a number of at most 64 bits"):
        decode({"mapping": [[key, 1]]})


def test_keys_that_labels_may_be_survive():
    keys = {2**64 - 1: 1, -(2**63): 2, "a": 3, True: 4, 0.5: 5, np.int8(7): 6, np.str_("b"): 7}
    assert decode(encode(keys)) == keys
    with pytest.raises(ValueError, match="a key must be"):
        encode({(1, 2): 3})


# --- Estimators and earlier formats --------------------------------------------------------------

LABELS = {
    "text": np.array(list("bca"))[np.arange(60) % 3],
    "text of objects": np.array(["no", "yes"], dtype=object)[np.arange(60) % 2],
    "bools": np.arange(60) % 2 == 0,
    "numbers": np.arange(60, dtype=np.int16) % 5 * 3,
    "one class": np.zeros(60, int),
    "several labels": np.eye(3, dtype=int)[np.arange(60) % 3],
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("labels", LABELS)
def test_classifiers_survive(tmp_path, rng, labels):
    data, y = rng.standard_normal((60, 4)), LABELS[labels]
    solver = Adam(Cosine(0.01, n_steps=99), beta_1=np.float32(0.5))
    model = MLPClassifier(
        (5,), activation=[ELU(0.5)], solver=solver, max_iter=4, n_iter_no_change=np.inf,
        class_weight=None if y.ndim > 1 else {y[0]: 2.0}, early_stopping=labels == "numbers",
        random_state=0,
    ).fit(data, y)  # fmt: skip
    xpmlp.save(model, tmp_path / "m")
    loaded = xpmlp.load(tmp_path / "m", "cpu")
    assert type(loaded) is MLPClassifier
    assert loaded.get_params(deep=False) == model.get_params(deep=False)
    np.testing.assert_array_equal(loaded.predict_proba(data), model.predict_proba(data))
    predicted = loaded.predict(data)
    np.testing.assert_array_equal(predicted, model.predict(data))
    assert predicted.dtype == model.predict(data).dtype
    assert loaded.classes_.dtype == model.classes_.dtype
    assert loaded.history_.to_dict() == model.history_.to_dict()
    for name in ("loss_curve_", "n_iter_", "t_", "validation_scores_", "loss_", "best_loss_"):
        assert getattr(loaded, name) == getattr(model, name), name
    loaded.partial_fit(data, y) if labels != "numbers" else loaded.fit(data, y)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("n_outputs", [1, 2])
def test_regressors_survive(tmp_path, rng, n_outputs):
    pandas = pytest.importorskip("pandas")
    data = pandas.DataFrame(rng.standard_normal((30, 3)), columns=["a", "b", "c"])
    y = data.to_numpy()[:, :n_outputs].squeeze()
    layers = [Dense(4, "gelu"), Dropout(0.1), Dense(3, "tanh", init="orthogonal")]
    model = MLPRegressor("huber", layers=layers, max_iter=3, dtype=np.float32).fit(data, y)
    xpmlp.save(model, tmp_path / "m")
    loaded = xpmlp.load(tmp_path / "m", "cpu")
    np.testing.assert_array_equal(loaded.predict(data), model.predict(data))
    assert loaded.predict(data).dtype == np.float32
    assert list(loaded.feature_names_in_) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="feature names"):
        loaded.predict(data[["b", "a", "c"]])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("callbacks", [EarlyStopping("loss")]),
        ("random_state", np.random.RandomState(0)),
        ("learning_rate", lambda step: 0.1),
    ],
)
def test_what_no_file_can_name_is_refused_by_its_name(tmp_path, rng, name, value):
    model = MLPRegressor(max_iter=2, **{name: value}).fit(X, X[:, 0])
    with pytest.raises(ValueError, match=f"{name}=.* cannot be saved"):
        xpmlp.save(model, tmp_path / "m")
    assert os.listdir(tmp_path) == []


def test_only_fitted_estimators_of_the_library_are_saved(tmp_path):
    from sklearn.exceptions import NotFittedError

    with pytest.raises(NotFittedError):
        xpmlp.save(MLPRegressor(), tmp_path / "m")

    class Mine(MLPRegressor):
        pass

    with pytest.raises(TypeError, match="model must be"):
        xpmlp.save(Mine(), tmp_path / "m")


def nested(*keys_and_value):
    *keys, last, value = keys_and_value

    def change(description):
        for key in keys:
            description = description[key]
        description[last] = value

    return change


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    "change",
    [
        nested("estimator", "class", "os.system"),
        nested("estimator", "parameters", "hidden", 3),
        nested("estimator", "parameters", "solver", {"optimizer": {"name": "system"}}),
        nested("estimator", "parameters", "solver", {"pickle": "gASVJ"}),
        nested("estimator", "parameters", "solver", {"float": "1e999"}),
        nested("estimator", "parameters", "layers", {"array": [1], "dtype": "<U99999999"}),
        nested("estimator", "fitted", "n_features_in_", 7),
        nested("estimator", "fitted", "n_outputs_", 7),
        nested("estimator", "fitted", "__class__", "x"),
        nested("estimator", "fitted", "n_iter_", "x"),
        lambda d: d["estimator"]["fitted"].pop("n_iter_"),
        nested("estimator", "fitted", "t_", True),
        nested("estimator", "fitted", "loss_curve_", 3),
        nested("estimator", "fitted", "loss_curve_", ["x"]),
        nested("estimator", "fitted", "_best", 3),
        nested("estimator", "fitted", "_best", {"tuple": ["loss"]}),
        *(
            nested("estimator", "fitted", "feature_names_in_", {"array": a, "dtype": "object"})
            for a in (["a", "b"], ["a", "b", 3])
        ),
        nested("precision", "x"),
        nested("format", True),
        nested("format", 2.0),
        nested("estimator", "labels", "several", 0),
        nested("estimator", "fitted", "predict", 3),
        nested("estimator", "labels", {}),
        nested("estimator", "labels", "classes", {"array": [1, 2, 3], "dtype": "int64"}),
        nested("estimator", "labels", "classes", {"array": [2, 1], "dtype": "int64"}),
        nested("estimator", "labels", "classes", 3),
        nested("estimator", "history", {"values": {"mapping": [[1]]}, "stopped": None}),
        nested("estimator", 3),
        nested("pipeline", {}),
        nested("format", "2"),
        nested("extra", 1),
        nested("seed", True),
    ],
)
def test_changed_estimators_are_refused(tmp_path, change):
    model = MLPClassifier((3,), max_iter=1, random_state=0).fit(X, [0, 1, 0, 1, 0, 1])
    xpmlp.save(model, tmp_path / "m")
    rewrite(tmp_path / "m", change)
    with pytest.raises(ModelFileError, match="m "):
        xpmlp.load(tmp_path / "m", "cpu")


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_text_far_longer_than_the_rest_asks_for_no_memory(tmp_path):
    model = MLPClassifier((3,), max_iter=1, random_state=0).fit(X, [0, 1, 0, 1, 0, 1])
    texts = ["a" * 30_000, *map(str, range(60_000))]
    for dtype in ("str", "object"):
        with pytest.raises(ValueError, match="one is 30,000 characters long, far longer than most"):
            encode(np.array(texts[:2000], dtype))
    xpmlp.save(model, tmp_path / "m")
    for dtype in ("str", "object"):
        classes = {"array": texts, "dtype": dtype}
        rewrite(tmp_path / "m", nested("estimator", "labels", "classes", classes))
        with pytest.raises(ModelFileError, match="far longer than most"):
            xpmlp.load(tmp_path / "m", "cpu")
    rewrite(tmp_path / "m", nested("estimator", "labels", "classes", texts))
    with pytest.raises(ModelFileError, match="must be an array"):
        xpmlp.load(tmp_path / "m", "cpu")


@pytest.mark.parametrize("array", [3, "ab", ["a", 3], [["a"]], [["a"], ["b"]]])
def test_arrays_are_vectors_of_their_type(array):
    with pytest.raises(ValueError, match="an array"):
        decode({"array": array, "dtype": "str"})


def test_one_long_name_among_short_ones_survives():
    names = np.array(["a" * 300, *map(str, range(900))])
    np.testing.assert_array_equal(decode(encode(names)), names)


FILES = Path(__file__).parent / "files"
TWO_ROWS = np.array([[5.1, 3.5, 1.4, 0.2], [6.0, 2.9, 5.0, 1.8]])


def test_files_of_every_format_load():
    for name in ("format-1", "format-2"):
        network = xpmlp.load(FILES / name / "network.safetensors", "cpu")
        expected = [[0.58224761, 0.41775241], [0.77049524, 0.22950482]]
        predicted = network.predict(np.arange(6.0).reshape(2, 3))
        np.testing.assert_allclose(predicted, expected, rtol=1e-6)
        assert (network.layers, network.dtype, network.seed) == (make().layers, "float32", 7)
        pipeline = xpmlp.load(FILES / name / "pipeline.safetensors", "cpu")
        expected = [[0.18406817, 0.67593155, 0.14000028], [0.14515491, 0.60638624, 0.24845886]]
        np.testing.assert_allclose(pipeline.output(TWO_ROWS), expected, rtol=1e-6)
        assert pipeline.classes == ["setosa", "versicolor", "virginica"]
    model = xpmlp.load(FILES / "format-2/classifier.safetensors", "cpu")
    assert model.predict(TWO_ROWS).tolist() == ["setosa", "virginica"]


# --- Writing -------------------------------------------------------------------------------------


def test_orphans_of_killed_processes_are_removed(tmp_path):
    orphan = tmp_path / ".m.0123abcd"
    other = tmp_path / ".m.backup"
    for file in (orphan, other):
        file.write_bytes(b"half")
    write_atomically(tmp_path / "m", b"new")
    assert sorted(os.listdir(tmp_path)) == [".m.backup", "m"]


def test_what_another_process_is_writing_is_no_orphan(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    with open(tmp_path / ".m.0123abcd", "wb") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        write_atomically(tmp_path / "m", b"new")
        assert sorted(os.listdir(tmp_path)) == [".m.0123abcd", "m"]


def test_many_writers_of_one_file_do_not_meet(tmp_path):
    def write(number):
        for _ in range(25):
            write_atomically(tmp_path / "m", bytes([number]) * 1000)

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(write, number) for number in range(8)]:
            done.result()
    content = (tmp_path / "m").read_bytes()
    assert len(content) == 1000
    assert len(set(content)) == 1
    assert os.listdir(tmp_path) == ["m"]


def test_what_cannot_be_written_to_is_named(tmp_path):
    with pytest.raises(OSError, match=r"'.*none/m'"):
        write_atomically(tmp_path / "none/m", b"x")


def test_a_loss_that_is_not_finite_reaches_no_file(tmp_path):
    network = Network(3, [Dense(1)], device="cpu", dtype="float32")
    callbacks = [xpmlp.Checkpoint(tmp_path, every=0.01, keep=99)]
    with pytest.raises(NonFiniteLossError):
        xpmlp.fit(
            network, X, X[:, 0], loss="squared_error", optimizer=SGD(1e3), batch_size=1,
            callbacks=callbacks, verbose=0,
        )  # fmt: skip
    files = [*tmp_path.iterdir()]
    assert len(files) > 3
    for file in files:
        assert np.isfinite(read_tensors(file)[0]["parameters"]).all()
