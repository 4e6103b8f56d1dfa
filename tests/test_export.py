"""ONNX: what another runtime computes is what the network computes."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from xpmlp import Dense, Dropout, MLPClassifier, MLPRegressor, Network, export_onnx, load
from xpmlp.activations import ACTIVATIONS, ELU, Activation
from xpmlp.cli import main
from xpmlp.files import write_atomically
from xpmlp.pipeline import Pipeline

pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
draw = np.random.default_rng(0)
X = draw.standard_normal((60, 4)).astype("float32")
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def run(path, data):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    results = session.run(None, {"X": np.asarray(data, "float32")})
    return dict(zip([output.name for output in session.get_outputs()], results, strict=True))


def exported(model, folder, data=X):
    export_onnx(model, folder / "m.onnx")
    return run(folder / "m.onnx", data)


@pytest.mark.parametrize("number", range(50))
def test_random_networks(tmp_path, number):
    rng = np.random.default_rng(number)
    names = [*ACTIVATIONS]
    layers = [Dropout(0.2)]
    for index in range(rng.integers(0, 4)):
        name = names[(3 * number + index) % len(names)]
        layers += [Dense(int(rng.integers(2, 20)), name, bias=bool(rng.integers(2)))]
    layers.append(Dense(int(rng.integers(2, 6)), names[number % len(names)]))
    n_features = int(rng.integers(1, 9))
    network = Network(n_features, layers, device="cpu", dtype="float32", seed=number)
    data = rng.standard_normal((7, n_features)).astype("float32")
    expected = network.predict(data)
    got = exported(network, tmp_path, data)["output"]
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_activations_at_the_edges(tmp_path):
    z = np.float32([-90, -20, -3, -1, -1e-4, -0.0, 0.0, 1e-4, 1, 3, 20, 80])[:, None]
    for name in {*ACTIVATIONS} - {"softmax"}:
        network = Network(1, [Dense(1, name, init="zeros")], device="cpu", dtype="float32")
        network.weights[0][...] = 1.0
        expected = network.predict(z)
        got = exported(network, tmp_path, z)["output"]
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6, err_msg=name)


def squash(xp, z, gain):
    return xp.where(z != 0.0, gain * z / (1.0 + xp.abs(z)), xp.log1p(xp.expm1(z)))


@dataclass(frozen=True)
class Squash(Activation):
    gain: float = 2.0
    name = "squash"
    forward_rule = squash
    backward_rule = squash

    @property
    def params(self):
        return (self.gain,)


def test_an_activation_of_your_own_is_written_out(tmp_path):
    network = Network(4, [Dense(5, Squash()), Dense(2, ELU(0.3))], device="cpu", dtype="float32")
    np.testing.assert_allclose(exported(network, tmp_path)["output"], network.predict(X), atol=1e-6)


def test_one_that_is_more_than_a_rule_is_refused(tmp_path):
    @dataclass(frozen=True)
    class Power(Activation):
        name = "power"

        def forward_rule(xp, z):
            return z**3.0

    network = Network(4, [Dense(2, Power())], device="cpu")
    with pytest.raises(ValueError, match="forward_rule cannot be written as ONNX"):
        export_onnx(network, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


LABELS = {
    "text": np.array(list("bca"))[np.arange(60) % 3],
    "two": np.array(["no", "yes"], dtype=object)[np.arange(60) % 2],
    "bools": np.arange(60) % 2 == 0,
    "numbers": np.arange(60, dtype=np.int16) % 5 * 3,
    "one class": np.full(60, 7),
    "one class of text": np.full(60, "only"),
    "numbers beyond int64": np.array([3, 2**63, 2**64 - 1], dtype="uint64")[np.arange(60) % 3],
    "small numbers of uint64": np.arange(60, dtype="uint64") % 3,
    "floats": np.arange(60) % 3 + 0.0,
    "several": (draw.random((60, 3)) > 0.5).astype(int),
}


@pytest.mark.parametrize("labels", LABELS)
def test_classifiers(tmp_path, labels):
    y = LABELS[labels]
    model = MLPClassifier((6,), max_iter=30, random_state=0).fit(X, y)
    got = exported(model, tmp_path)
    assert [*got] == ["label", "probabilities"]
    np.testing.assert_allclose(got["probabilities"], model.predict_proba(X), atol=1e-5)
    assert (got["label"] == model.predict(X)).all()
    assert got["label"].shape == y.shape


@pytest.mark.parametrize("n_outputs", [1, 2])
@pytest.mark.parametrize("loss", ["squared_error", "poisson"])
def test_regressors(tmp_path, n_outputs, loss):
    y = np.abs(X[:, :n_outputs].squeeze())
    model = MLPRegressor(loss, (6,), max_iter=10, random_state=0).fit(X, y)
    got = exported(model, tmp_path)
    np.testing.assert_allclose(got["prediction"], model.predict(X), rtol=1e-5, atol=1e-5)
    assert got["prediction"].shape == model.predict(X).shape


@pytest.mark.parametrize("data", ["iris", "breast_cancer", "diabetes"])
def test_the_command_writes_scaling_and_names(tmp_path, monkeypatch, capsys, data):
    import onnx
    from sklearn import datasets

    monkeypatch.chdir(tmp_path)
    for arguments in (
        ["train", data, "--epochs", "5", "--out", "m", "--device", "cpu", "--quiet"],
        ["export", "m", "m.onnx"],
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert not ended.value.code
    assert "onnx     m.onnx" in capsys.readouterr().out
    pipeline, rows = load("m", "cpu"), getattr(datasets, f"load_{data}")().data
    got = run("m.onnx", rows)
    if pipeline.classes is None:
        scale = pipeline.target_scale
        np.testing.assert_allclose(
            got["prediction"], pipeline.predict(rows), rtol=1e-5, atol=1e-5 * scale
        )
    else:
        expected = [pipeline.classes[number] for number in pipeline.predict(rows)]
        assert got["label"].tolist() == expected
        output = pipeline.output(rows)
        if output.shape[1] == 1:
            output = np.concatenate([1.0 - output, output], axis=1)
        np.testing.assert_allclose(got["probabilities"], output, atol=1e-5)
    metadata = {entry.key: entry.value for entry in onnx.load("m.onnx").metadata_props}
    assert json.loads(metadata["features"]) == pipeline.features


def pipeline(shift, target="t", classes=None):
    network = Network(1, [Dense(1, "sigmoid" if classes else "identity")], device="cpu", seed=1)
    return Pipeline(network, ["a"], target, classes, np.array([shift]), np.ones(1))


def test_a_column_far_from_zero_is_named(tmp_path):
    with pytest.warns(UserWarning, match=r"columns 'a' are so far from 0, .* up to 6e\+01"):
        export_onnx(pipeline(1e9), tmp_path / "m.onnx")
    near = pipeline(1e3)
    got = exported(near, tmp_path, [[999.0], [1001.5]])
    expected = near.predict(np.array([[999.0], [1001.5]]))
    np.testing.assert_allclose(got["prediction"], expected, rtol=1e-5)


def test_one_long_class_among_many_takes_no_more_memory(tmp_path):
    names = ["a" * 200_000, *map(str, range(20_000))]
    network = Network(1, [Dense(20_001, "softmax")], device="cpu")
    model = Pipeline(network, ["a"], "t", names, np.zeros(1), np.ones(1))
    got = exported(model, tmp_path, [[0.5]])
    assert got["label"].tolist() == [names[model.predict(np.array([[0.5]]))[0]]]


@pytest.mark.parametrize("model", [
    lambda: pipeline(0.0, classes=["a", "\ud800"]), lambda: pipeline(0.0, target="\udfff"),
    lambda: MLPClassifier((2,), max_iter=2).fit(X, np.array(["a", "\ud800"])[np.arange(60) % 2]),
])  # fmt: skip
def test_halves_of_characters_are_refused(tmp_path, model):
    made = model()
    with pytest.raises(ValueError, match="a name of a class or column is no text"):
        export_onnx(made, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_errors(tmp_path):
    with pytest.raises(TypeError, match=r"model must be a Network, .* got 3"):
        export_onnx(3, tmp_path / "m")
    network = Network(1, [Dense(1)], device="cpu")
    network.weights[0][...] = 1e300
    with pytest.raises(ValueError, match="not finite in float32"):
        export_onnx(network, tmp_path / "m")
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path / "none"), str(tmp_path / "m")])
    write_atomically(tmp_path / "other", b"x")
    assert not (tmp_path / "m").exists()
