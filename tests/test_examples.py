"""The examples run, draw a picture, and show what they say they show."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
ROOT = Path(__file__).parent.parent
NAMES = ["decision_boundary", "gradient_flow", "loss_curve"]


def run(name, *arguments, cwd):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'backends'}"}
    return subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / f"examples/{name}.py"), *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What each example prints, after its picture has been checked."""
    folder, said = tmp_path_factory.mktemp("examples"), {}
    for name in NAMES:
        path = folder / "new" / f"{name}.png"
        done = run(name, str(path), cwd=folder)
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 20_000
        width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
        assert width > 900
        assert height > 400
        said[name] = done.stdout
    return said


def test_every_example_is_tested():
    assert sorted(path.stem for path in (ROOT / "examples").glob("*.py")) == NAMES
    makefile = (ROOT / "Makefile").read_text()
    assert sorted(re.findall(r"examples/(\w+)\.py", makefile)) == NAMES


def test_pictures_go_to_out_unless_told_otherwise(tmp_path):
    assert run("gradient_flow", cwd=tmp_path).returncode == 0
    assert (tmp_path / "out/gradient_flow.png").exists()


def test_sigmoid_gradients_vanish_and_those_of_relu_do_not(printed):
    # 1.5e-07 and 3.1e-01, far from either bound.
    text = printed["gradient_flow"]
    ratios = dict(re.findall(r"^(\w+): .* (\S+)$", text, re.MULTILINE))
    assert float(ratios["logistic"]) < 1e-3
    assert float(ratios["relu"]) > 1e-2


def test_dropout_delays_overfitting(printed):
    number = r"(\d+(?:\.\d+)?)"
    found = re.findall(f"lowest, {number}, in epoch {number}, and {number}", printed["loss_curve"])
    # Lowest 0.263 in epoch 37 and 1.832 in the last, against 0.290 in 114 and 0.379.
    (lowest, at, last), (lowest_dropout, at_dropout, last_dropout) = [
        map(float, row) for row in found
    ]
    assert last > 3 * lowest
    assert last_dropout < 2 * lowest_dropout
    assert at < at_dropout


def test_the_penalty_helps_on_new_data(printed):
    rows = [
        [float(x) for x in re.findall(r"(?:accuracy|data) (\d\.\d+)", line)]
        for line in printed["decision_boundary"].splitlines()
        if "accuracy" in line
    ]
    few, many, penalised = ([train, new, loss] for train, new, loss in rows)
    assert few[0] < penalised[0] < many[0] == 1.0  # fitted too little, well, too much
    assert penalised[2] < few[2] < many[2]  # log loss on new data
    assert penalised[1] > few[1]
