"""The command line, from arguments to files, exit codes and messages."""

import csv
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import xpmlp
from xpmlp.cli import main
from xpmlp.datasets import load_table
from xpmlp.experiment import encode_target
from xpmlp.files import read_tensors, write_tensors

FAST = ["--epochs", "3", "--device", "cpu", "--quiet"]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code


def refused(capsys, *arguments):
    """The one line on standard error of a command that ends with exit code 2."""
    assert run(*arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("xpmlp: error: ")
    assert shown.err.count("\n") == 1
    return shown.err


def write_csv(path, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)


def flowers(n=60):
    draw = np.random.default_rng(0)
    kind = draw.integers(0, 3, n)
    size = kind + 0.1 * draw.standard_normal(n)
    return [
        ["size", "kind", "noise"],
        *(
            [repr(float(s)), ["rose", "lily", "iris"][k], "0.5"]
            for s, k in zip(size, kind, strict=True)
        ),
    ]


def test_train_then_predict_a_csv(capsys):
    write_csv("flowers.csv", flowers())
    options = ["--hidden", "16", "--lr", "0.02", "--epochs", "60", "--device", "cpu", "--quiet"]
    files = ["--out", "m.safetensors", "--plot", "loss.png"]
    assert run("train", "flowers.csv", "--target", "kind", *options, *files) == 0
    shown = capsys.readouterr().out
    for part in ("60 rows, 2 features, target 'kind' (3 classes)", "device   cpu (NumPy", "test  "):
        assert part in shown
    assert Path("loss.png").read_bytes().startswith(b"\x89PNG")

    assert run("predict", "m.safetensors", "flowers.csv", "--out", "pred.csv") == 0
    with open("pred.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["kind", "p(iris)", "p(lily)", "p(rose)"]
    truth = [row[1] for row in flowers()[1:]]
    assert np.mean([row[0] == kind for row, kind in zip(rows[1:], truth, strict=True)]) > 0.9
    assert all(abs(sum(map(float, row[1:])) - 1) < 1e-4 for row in rows[1:])


def test_columns_are_found_by_name_in_any_order(capsys):
    write_csv("flowers.csv", flowers())
    assert run("train", "flowers.csv", "--target", "kind", *FAST, "--out", "m") == 0
    write_csv("swapped.csv", [[row[2], "other", row[0]] for row in flowers()])
    capsys.readouterr()
    assert run("predict", "m", "flowers.csv") == 0
    first = capsys.readouterr().out
    assert run("predict", "m", "swapped.csv") == 0
    assert capsys.readouterr().out == first


@pytest.mark.parametrize("data", ["breast_cancer", "digits", "iris", "wine", "diabetes", "xor"])
def test_built_in_sets(capsys, data):
    options = ["--test-size", "0"] if data == "xor" else []
    assert run("train", data, *FAST, *options, "--out", "m") == 0
    assert ("regression" in capsys.readouterr().out) == (data == "diabetes")
    assert run("predict", "m", data) == 0
    assert ",nan" not in capsys.readouterr().out


def test_xor_is_learnt(capsys):
    options = [
        "--hidden",
        "4",
        "--activation",
        "tanh",
        "--lr",
        "0.05",
        "--epochs",
        "500",
        "--quiet",
    ]
    assert (
        run("train", "xor", "--test-size", "0", "--scale", "none", *options, "--device", "cpu") == 0
    )
    assert "train 4 1 1" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_numpy_files(capsys, kind):
    draw = np.random.default_rng(0)
    X = draw.standard_normal((40, 3)).astype("float32")
    y = X @ np.array([1.0, -2.0, 0.5], dtype="float32")
    if kind == "npy":
        np.save("d.npy", np.column_stack([X, y]))
    else:
        np.savez("d.npz", X=X, y=y)
    assert run("train", f"d.{kind}", *FAST, "--out", "m") == 0
    shown = capsys.readouterr().out
    assert "3 features" in shown
    assert "float32" in shown
    np.savez("new.npz", X=X[:5])
    assert run("predict", "m", "new.npz") == 0
    assert len(capsys.readouterr().out.splitlines()) == 6


def test_a_regression_is_predicted_in_its_own_units(capsys):
    x = np.linspace(0, 1, 80)
    np.savez("line.npz", X=x[:, None], y=1000.0 + 500.0 * x)
    options = ["--hidden", "", "--lr", "0.05", "--epochs", "200", "--device", "cpu", "--quiet"]
    assert run("train", "line.npz", *options, "--out", "m") == 0
    capsys.readouterr()
    predicted = xpmlp.load("m", "cpu").predict(np.array([[0.0], [1.0]]))
    np.testing.assert_allclose(predicted, [1000.0, 1500.0], rtol=0.01)


def test_options_reach_the_network_and_the_training(capsys):
    options = [
        *("--hidden", "8,4", "--activation", "leaky_relu:slope=0.2,tanh", "--dropout", "0.1,0"),
        *("--no-bias", "--init", "normal:std=0.1", "--optimizer", "sgd:momentum=0.9"),
        *("--lr", "0.05", "--schedule", "cosine", "--alpha", "0.001", "--l1", "0.0001"),
        *("--clip-norm", "1", "--loss", "log_loss:label_smoothing=0.1", "--dtype", "float32"),
        *("--validation", "0.2", "--patience", "2", "--split-seed", "3", "--seed", "4"),
    ]
    assert run("train", "iris", *FAST, *options, "--out", "m") == 0
    shown = capsys.readouterr().out
    assert "Dense(8, leaky_relu) no bias -> Dropout(0.1) -> Dense(4, tanh) no bias" in shown
    assert "validation" in shown
    network = xpmlp.load("m", "cpu").network
    assert (network.dtype, network.seed) == ("float32", 4)
    assert network.layers[0].activation.slope == 0.2
    assert network.layers[0].init.std == 0.1


def test_the_same_command_gives_the_same_file():
    for out in ("a", "b"):
        assert run("train", "iris", *FAST, "--dropout", "0.2", "--out", out) == 0
    assert Path("a").read_bytes() == Path("b").read_bytes()


def test_devices_shows_every_adapter(capsys):
    assert run("devices") == 0
    shown = capsys.readouterr().out
    assert f"NumPy {np.__version__}" in shown
    assert "GiB free" in shown
    assert "cupy" in shown


def test_fallback_is_one_line(capsys):
    from xpmlp import available_backends

    if available_backends()["cupy"] == "usable":
        pytest.skip("describes a machine without a GPU")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert run("train", "iris", "--epochs", "1", "--quiet", "--device", "cuda") == 0
    shown = capsys.readouterr()
    assert shown.err.startswith("xpmlp: DeviceFallbackWarning: device='cuda' cannot be used")
    assert shown.err.count("\n") == 1
    assert "device   cpu" in shown.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "Missing argument 'DATA'"),
        (["train", "iris", "--bogus"], "No such option"),
        (["train", "irs"], "data='irs' is not known. Did you mean 'iris'"),
        (["train", "none.csv"], "none.csv: No such file or directory"),
        (["train", "none.txt"], "must be one of .csv, .npy, .npz"),
        (["train", "iris", "--target", "foo"], "Known: petal length (cm), petal width (cm), sepal"),
        (["train", "iris", "--activation", "sigmod"], "Did you mean 'sigmoid'"),
        (["train", "iris", "--activation", "relu,tanh,relu"], "one value or 2"),
        (["train", "iris", "--hidden", "8,x"], "--hidden must be whole numbers"),
        (
            ["train", "iris", "--hidden", "8,0"],
            "--hidden must be whole numbers from 1 on, got '8,0'",
        ),
        (["train", "iris", "--dropout", "1"], "rate must be a number >= 0 and < 1"),
        (["train", "iris", "--loss", "log_los"], "Did you mean 'log_loss'"),
        (["train", "iris", "--optimizer", "adam:beta=1"], "Did you mean 'beta_2'"),
        (["train", "iris", "--optimizer", "adam:beta"], "expected name:key=value"),
        (["train", "iris", "--schedule", "cosin"], "Did you mean 'cosine'"),
        (["train", "iris", "--lr", "-1"], "learning_rate must be a number >= 0"),
        (["train", "iris", "--lr", "x"], "is not a valid float"),
        (["train", "iris", "--epochs", "0"], "epochs must be a whole number >= 1"),
        (["train", "iris", "--batch-size", "0"], "batch_size must be a whole number >= 1"),
        (["train", "iris", "--test-size", "1"], "--test-size must be a number >= 0 and < 1"),
        (["train", "iris", "--patience", "2"], "--patience needs held-out rows"),
        (["train", "iris", "--device", "gpu"], "device='gpu' is not known"),
        (["train", "iris", "--backend", "nump"], "Did you mean 'numpy'"),
        (["train", "iris", "--test-size", "0.999"], "--test-size=0.999 of 150 rows leaves none"),
        (["train", "iris", "--seed", "-1"], "--seed must be a whole number >= 0, got -1"),
        (["train", "iris", "--hidden", "", "--activation", "reelu"], "Did you mean 'relu'"),
        (["train", "iris", "--out", "."], "File '.' is a directory"),
        (["train", "iris", "--out", "a", "--plot", "a"], "--plot=a: the ending must be one of png"),
        (["train", "iris", "--out", "a.png", "--plot", "a.png"], "must be different files"),
        (["train", "iris", "--out", "no/m"], "--out=no/m: the folder no does not exist"),
        (["train", "iris", "--loss", "poisson", "--task", "regression"], "column 'target'"),
        (["predict", "none", "iris"], "none: No such file or directory"),
        (["predict", __file__, "iris"], "is not a model file of xpmlp"),
        (["trian"], "No such command 'trian'"),
    ],
)
def test_user_errors_are_one_line_and_exit_2(capsys, arguments, message):
    assert message in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a,b\n", "holds no data rows"),
        ("a,b\n1,2\n3\n", "has 1 values in data row 2, expected 2"),
        ("a,a,b\n1,2,3\n", "has the column 'a' twice"),
        ("a,b\n1,2\nx,3\n", "column 'a' of d.csv must hold numbers, got 'x' in data row 2"),
        ("a,b\n1,2\n,3\n", "column 'a' of d.csv must hold numbers, got no value in data row 2"),
        (
            "a,b\n1,2\nnan,3\n",
            "column 'a' of d.csv must hold finite numbers, got nan in data row 2",
        ),
        ("a,b\n1_000,2\n3,4\n", "column 'a' of d.csv must hold numbers, got '1_000' in data row 1"),
        ("a,b\n1\0,2\n", "d.csv"),
        ("a;b\n1;2\n", "columns are separated by commas, got one column 'a;b'"),
        ("a,b\n1,x\n2,\n3,y\n", "target column 'b' of d.csv has no value in data row 2"),
        ("a,b\n1,x\n2,x\n3,x\n", "target column 'b' of d.csv has only one class, 'x'"),
        ("b\n1\n2\n", "has no column besides the target"),
        ('a,b\n"1,2\n', "cannot be read as CSV"),
    ],
)
def test_bad_csv(capsys, text, message):
    Path("d.csv").write_text(text)
    assert message in refused(capsys, "train", "d.csv")


def test_csv_with_a_byte_order_mark_quotes_and_windows_lines(capsys):
    body = 'a,"b ""x"""\r\n' + "".join(f"{i},{i % 2}\r\n" for i in range(20))
    Path("d.csv").write_bytes(b"\xef\xbb\xbf" + body.encode())
    assert run("train", "d.csv", *FAST, "--target", 'b "x"') == 0
    assert "1 features" in capsys.readouterr().out


def test_a_long_cell_does_not_make_its_column_wide(capsys):
    rows = [["a", "b"], *([i, "xy"[i % 2]] for i in range(20_000)), [0, "z" * 130_000]]
    write_csv("d.csv", rows)
    column = load_table("d.csv").column("b")
    assert column[0] == "x"
    assert column.nbytes < 10**6
    assert [len(name) for name in encode_target(load_table("d.csv"), "b", "auto")[0]] == [
        1, 1, 130_000,
    ]  # fmt: skip


def test_csv_without_a_header(capsys):
    Path("d.csv").write_text("".join(f"{i},{i / 7},{i % 2}\n" for i in range(20)))
    assert run("train", "d.csv", *FAST) == 0
    assert "target 'column2' (2 classes)" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["d.npy", "d.npz"])
@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00v\x00{'descr':", b"x" * 99]
)
def test_damaged_numpy_files(capsys, name, content):
    Path(name).write_bytes(content)
    assert "cannot be read as a NumPy file" in refused(capsys, "train", name)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": np.ones((4, 2), complex), "y": np.ones(4)}, "X must hold real numbers"),
        ({"X": np.ones(()), "y": np.ones(4)}, "X must have rows and columns"),
        ({"X": np.ones((0, 2)), "y": np.ones(0)}, "X must have rows and columns"),
        ({"X": np.ones((4, 2)), "y": np.ones(3)}, "y must have shape (4,), got (3,)"),
        ({"a": np.ones((4, 2))}, "must hold an array named X"),
    ],
)
def test_numpy_files_that_do_not_suit(capsys, arrays, message):
    np.savez("d.npz", **arrays)
    assert message in refused(capsys, "train", "d.npz")


@pytest.mark.parametrize(
    ("descr", "shape", "message"),
    [
        ("|S0", (10**12, 1), "must hold real numbers or text, got |S0"),
        ("<U0", (1, 10**12), "must hold real numbers or text, got <U0"),
        ("<f8", (0, 10**12), "must have rows and columns, got shape (0, 1000000000000)"),
        ("<f8", (10**12, 0), "must have rows and columns"),
        ("<f8", (10**12, 10**12), "cannot be read as a NumPy file"),
    ],
)
def test_numpy_files_of_no_bytes_are_refused_at_once(capsys, descr, shape, message):
    with open("d.npy", "wb") as file:
        header = {"descr": descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
    assert message in refused(capsys, "train", "d.npy")


def test_uint8_files_are_trained_in_float64(capsys):
    np.savez("d.npz", X=np.arange(40, dtype="uint8").reshape(20, 2), y=np.arange(20) % 2)
    assert run("train", "d.npz", *FAST) == 0
    assert "parameters of float64" in capsys.readouterr().out


def test_classes_of_bytes_are_text(capsys):
    np.savez("d.npz", X=np.arange(40.0).reshape(20, 2), y=np.array([b"a", b"b"] * 10))
    assert run("train", "d.npz", *FAST, "--out", "m") == 0
    assert xpmlp.load("m", "cpu").classes == ["a", "b"]


def test_a_class_without_a_value_is_refused(capsys):
    Path("d.csv").write_text("x,y\n1,0\n2,1\n3,nan\n4,1\n")
    message = refused(capsys, "train", "d.csv", "--task", "classification")
    assert "target column 'y' of d.csv has no value in data row 3" in message


def test_output_can_go_through_a_pipe(capsys):
    assert run("train", "iris", *FAST, "--out", "m") == 0
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert run("predict", "m", "iris", "--out", "pipe") == 0
    assert os.read(reader, 10**6).startswith(b"target,p(setosa)")
    os.close(reader)


def test_columns_can_be_dropped(capsys):
    write_csv("flowers.csv", [[*row, f"id{i}"] for i, row in enumerate(flowers())])
    options = ["--target", "kind", "--drop", "noise,id0"]
    assert run("train", "flowers.csv", *options, *FAST, "--out", "m") == 0
    assert xpmlp.load("m", "cpu").features == ["size"]
    capsys.readouterr()
    assert "Did you mean 'noise'" in refused(capsys, "train", "flowers.csv", "--drop", "nois")[:400]


def test_names_of_classes_do_not_control_a_terminal(capsys, monkeypatch):
    names = ["=HYPERLINK(1)", "\x1b[2J\u202e"]
    write_csv("d.csv", [["a", "b"], *([i, names[i % 2]] for i in range(40))])
    assert run("train", "d.csv", *FAST, "--out", "m") == 0
    assert run("predict", "m", "d.csv", "--out", "p.csv") == 0
    assert "\x1b" not in capsys.readouterr().out
    text = Path("p.csv").read_text()
    assert text.startswith("b,p(\x1b[2J\u202e),p(=HYPERLINK(1))\n")
    assert run("predict", "m", "d.csv") == 0
    assert capsys.readouterr().out == text
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert run("predict", "m", "d.csv") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("b,p(\\x1b[2J\\u202e),p(=HYPERLINK(1))\n")
    assert "\x1b" not in shown
    tensors, description = read_tensors("m")
    write_tensors("m", {**tensors, "\x1b[2J": np.zeros(1)}, description)
    assert r"tensors of no use: \x1b[2J)" in refused(capsys, "predict", "m", "d.csv")
    with pytest.raises(xpmlp.ModelFileError, match=r"no use: \\x1b\[2J"):
        xpmlp.load("m", "cpu")


def test_a_dash_is_standard_output(capsys):
    assert run("train", "iris", *FAST, "--out", "m") == 0
    capsys.readouterr()
    assert run("predict", "m", "iris", "--out", "-") == 0
    assert len(capsys.readouterr().out.splitlines()) == 151
    assert not Path("-").exists()


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "xpmlp", "--version"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.startswith("xpmlp, version")


def test_pickles_are_not_loaded(capsys):
    np.save("evil.npy", np.array([[{}, 1]], dtype=object))
    assert "cannot be read as a NumPy file" in refused(capsys, "train", "evil.npy")


def test_a_failed_run_writes_nothing(capsys):
    arguments = ["--optimizer", "sgd", "--lr", "1e9", "--scale", "none", "--quiet"]
    assert run("train", "diabetes", *arguments, "--out", "m", "--plot", "p.png") == 1
    shown = capsys.readouterr()
    assert "the loss became" in shown.err
    assert shown.err.count("\n") == 1
    assert os.listdir() == []


def test_the_installed_command_ends_without_a_traceback():
    done = subprocess.run(
        [sys.executable, "-c", "from xpmlp.cli import main; main()", "train", "nothing"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("scale", ["minmax", "standard"])
@pytest.mark.parametrize(("column", "name"), [(0, "a"), (2, "c")])
def test_numbers_too_large_to_be_scaled_are_refused_before_training(capsys, scale, column, name):
    rows = [[str(i), str(i % 5), f"{i / 3}"] for i in range(12)]
    for i, text in [(3, "1e308"), (7, "-1e308"), (8, "1e308")]:
        rows[i][column] = text
    Path("d.csv").write_text("\n".join(map(",".join, [["a", "b", "c"], *rows])))
    error = refused(capsys, "train", "d.csv", "--scale", scale, "--test-size", "0")
    assert f"column '{name}' cannot be scaled: its numbers are too large" in error
