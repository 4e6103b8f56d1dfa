"""What may go wrong around a run, and does not end it: outputs, threads, processes."""

import os
import pickle
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from xpmlp import Dense, Dropout, MLPClassifier, MLPRegressor, Network, fit

ROOT = Path(__file__).parent.parent
SEARCH_PATH = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'backends')!r}]\n"
draw = np.random.default_rng(0)
X = draw.standard_normal((120, 5))
Y = (X[:, 0] > 0).astype(int)

TRAIN = (
    SEARCH_PATH
    + """
import os, warnings
import numpy as np
from xpmlp import MLPRegressor
warnings.simplefilter("ignore")
X = np.random.default_rng(0).standard_normal((50, 3))
model = MLPRegressor(max_iter=30, verbose=True, random_state=0)
{before}
model.fit(X, X[:, 0])
os.write({done}, str(model.n_iter_).encode())
os._exit(0)
"""
)


@pytest.mark.parametrize(
    "before",
    [
        "sys.stdout.close()",
        "sys.stdout = None",
        "os.close(1)",
        "os.dup2(os.open('/dev/full', os.O_WRONLY), 1)",
        "r, w = os.pipe(); os.dup2(w, 1); os.close(r); os.close(w)",
        "import signal; signal.signal(signal.SIGPIPE, signal.SIG_IGN); "
        "r, w = os.pipe(); os.dup2(w, 1); os.dup2(w, 2); os.close(r); os.close(w)",
    ],
)
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="not a Linux system")
def test_an_output_that_fails_does_not_end_training(before):
    reader, writer = os.pipe()
    try:
        code = TRAIN.format(before=before, done=writer)
        subprocess.run([sys.executable, "-c", code], pass_fds=[writer], capture_output=True)
    finally:
        os.close(writer)
    with open(reader) as file:
        assert file.read() == "30"


def test_a_terminal_that_goes_away_does_not_end_training(monkeypatch):
    class Gone:
        encoding = "utf-8"

        def isatty(self):
            return True

        def write(self, text):
            if self.alive:
                return len(text)
            raise OSError(5, "Input/output error")

        def flush(self):
            self.write("")

        alive = True

    screen = Gone()
    monkeypatch.setattr(sys, "stderr", screen)
    network = Network(5, [Dense(1)], device="cpu")

    from xpmlp import Callback

    class Away(Callback):
        def on_epoch(self, run):
            screen.alive = False

    history = fit(network, X, Y, loss="squared_error", epochs=60, callbacks=[Away()])
    monkeypatch.undo()
    assert history.n_epochs == 60


def test_a_model_is_written_before_the_report_that_cannot_be(tmp_path):
    code = SEARCH_PATH + "from xpmlp.cli import main; main()"
    arguments = ["train", "xor", "--epochs", "3", "--quiet", "--out", str(tmp_path / "m")]
    with open("/dev/full", "w") as full:
        subprocess.run([sys.executable, "-c", code, *arguments], stdout=full, stderr=full)
    assert (tmp_path / "m").exists()


def test_predictions_of_many_threads_are_those_of_one():
    layers = [Dense(64, "tanh"), Dropout(0.5), Dense(3, "softmax")]
    network = Network(5, layers, device="cpu", dtype="float32")
    data = [draw.standard_normal((n, 5)) for n in (1, 7, 300, 5000)] * 8
    expected = [network.predict(x) for x in data]
    with ThreadPoolExecutor(8) as pool:
        for got, one in zip(pool.map(network.predict, data), expected, strict=True):
            np.testing.assert_array_equal(got, one)


@pytest.mark.parametrize("captured", [False, True])
def test_fits_in_two_threads_do_not_mix(monkeypatch, captured):
    if captured:
        pytest.importorskip("numba")
        monkeypatch.setattr("xpmlp_numpy.SECONDS_TO_CAPTURE", 0.0)
    estimators = [
        MLPClassifier((20,), max_iter=15, dropout=0.2, random_state=1, tol=0.0),
        MLPRegressor(hidden_layer_sizes=(9, 9), max_iter=15, solver="sgd", random_state=2, tol=0.0),
    ] * 3

    def trained(model):
        clone = pickle.loads(pickle.dumps(model))
        return clone.fit(X, Y).network_.parameters

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [trained(model) for model in estimators]
        with ThreadPoolExecutor(4) as pool:
            for got, one in zip(pool.map(trained, estimators), expected, strict=True):
                np.testing.assert_array_equal(got, one)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_worker_processes_train_and_predict():
    from sklearn.model_selection import cross_val_predict

    model = MLPClassifier((8,), max_iter=5, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one, two = (cross_val_predict(model, X, Y, cv=2, n_jobs=n) for n in (1, 2))
    np.testing.assert_array_equal(one, two)


def test_a_cache_that_cannot_be_written_costs_one_warning(tmp_path):
    pytest.importorskip("numba")
    folder = tmp_path / "cache"
    folder.write_text("a file where the folder should be")
    code = (
        SEARCH_PATH
        + """
import warnings
import numpy as np, xpmlp_numpy
from xpmlp import Dense, Network, fit
xpmlp_numpy.SECONDS_TO_CAPTURE = 0.0
X = np.ones((40, 3))
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    for _ in range(2):
        fit(Network(3, [Dense(4, "tanh"), Dense(1)], device="cpu"), X, X[:, 0],
            loss="squared_error", verbose=0)
print(*(str(warning.message) for warning in seen), sep="\\n")
"""
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "XPMLP_CACHE_DIR": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (warning,) = done.stdout.splitlines()
    assert "compiled code cannot be kept" in warning
