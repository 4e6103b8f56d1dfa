"""Runs of training that are killed, interrupted, out of disk space, or repeated without end."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import warnings
from collections.abc import Callable
from contextlib import contextmanager, suppress
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np

EPOCHS = 8
_PAGE = 4096
# Cycles before memory is looked at: by then what is kept once, such as compiled code, is there.
_WARM_UP = 100


def killed(folder: Path, n: int, seed: int) -> dict[str, Any]:
    """`kill -9` at random moments, some of them while a checkpoint is written.

    The network is wide and the batches are small, so that most of a run goes into files of some
    megabytes: a kill may leave a part of one. Were they written in place, some five of a hundred
    runs could not go on.

    A run that was killed goes on from its newest checkpoint, or from the beginning if it had none,
    and has to end with the parameters and the history of one that was left alone. Every second
    run's steps are captured, where Numba is installed.
    """
    draw = random.Random(seed)
    expected, durations = {}, {}
    for captured in (False, True):
        expected[captured] = train(folder / f"here {captured}", captured)
        child = _Child(train, folder / f"child {captured}", captured)
        start = perf_counter()
        child.process.join()
        durations[captured] = perf_counter() - start
    held = begun = writing = 0
    for number in range(n):
        captured = bool(number % 2)
        place = folder / str(number)
        child = _Child(train, place, captured)
        sleep(draw.uniform(0.0, durations[captured]))
        child.process.kill()
        child.process.join()
        begun += _checkpoints(place)
        writing += any(place.glob(".epoch*"))
        with suppress(Exception):  # of any kind: it is not held then
            held += train(place, captured) == expected[captured]
    seen = {"with a checkpoint": begun, "while one was written": writing}
    return {"tried": n, "held": held, "outcomes": seen}


def train(folder: Path, captured: bool) -> str:
    """A run with a checkpoint after every call of the adapter, or the rest of it; its digest."""
    import xpmlp_numpy

    from xpmlp import Checkpoint, Dense, Dropout, EarlyStopping, Network, fit

    xpmlp_numpy.SECONDS_TO_CAPTURE = 0.0 if captured else float("inf")
    X, y = _data()
    layers: list[Any] = [Dense(2_000, "gelu"), Dropout(0.2), Dense(1, "sigmoid")]
    network = Network(X.shape[1], layers, device="cpu", seed=1)
    found = _checkpoints(folder)
    history = fit(
        network, X[:40], y[:40], loss="log_loss", epochs=EPOCHS, batch_size=8, verbose=0,
        validation=(X[40:60], y[40:60]), metrics=["accuracy"],
        callbacks=[EarlyStopping(patience=4), Checkpoint(folder, every=1e-9)],
        resume=folder if found else None,
    )  # fmt: skip
    return sha256(_bits(network) + repr(history.to_dict()).encode()).hexdigest()


def interrupted(folder: Path, n: int, seed: int) -> dict[str, Any]:
    """Ctrl-C at random moments of a long run: the model of the last step, whole, is there after it.

    The process goes on after `fit`: it predicts, saves, loads, and trains for another epoch.
    """
    draw = random.Random(seed)
    held = 0
    for number in range(n):
        place = folder / f"interrupted {number}"
        place.mkdir()
        process = _Child(train_for_long, place, bool(number % 2)).process
        sleep(draw.uniform(0.0, 0.5))
        os.kill(process.pid or 0, signal.SIGINT)
        process.join(timeout=60)
        process.kill()
        held += process.exitcode == 0 and (place / "usable").exists()
    return {"tried": n, "held": held, "outcomes": {}}


def train_for_long(folder: Path, captured: bool) -> None:
    """Train until a signal comes, and then use the network."""
    import xpmlp_numpy

    from xpmlp import Checkpoint, Dense, Network, TrainingInterruptedWarning, fit, load, save

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    xpmlp_numpy.SECONDS_TO_CAPTURE = 0.0 if captured else float("inf")
    X, y = _data()
    network = Network(X.shape[1], [Dense(16, "gelu"), Dense(1, "sigmoid")], device="cpu", seed=1)
    options: Any = {"loss": "log_loss", "batch_size": 16, "verbose": 0}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        callbacks = [Checkpoint(folder / "checkpoints", every=0.5)]
        history = fit(network, X, y, epochs=10**7, callbacks=callbacks, **options)
    assert [one.category for one in seen] == [TrainingInterruptedWarning]
    assert history.stopped == "interrupted"
    assert _checkpoints(folder / "checkpoints")
    predicted = network.predict(X)
    assert np.isfinite(predicted).all()
    save(network, folder / "model")
    np.testing.assert_array_equal(load(folder / "model", "cpu").predict(X), predicted)
    fit(network, X, y, epochs=1, **options)
    (folder / "usable").touch()


def disk_full(folder: Path, n: int, seed: int) -> dict[str, Any]:
    """A small disk with room for a part of the new file, a page more each time.

    Takes the right to mount one. The old file has to load, the model in memory to be saved
    elsewhere, nothing else to be left on the disk.
    """
    from xpmlp import Dense, Network, load, save

    del seed
    disk = folder / "disk"
    disk.mkdir()
    small, large = (Network(20, [Dense(width)], device="cpu", seed=1) for width in (5, 1500))
    held = 0
    with _mounted(disk, 2**20):
        path = disk / "model"
        for pages in range(n):
            (disk / "filler").unlink(missing_ok=True)
            save(small, path)
            room = os.statvfs(disk)
            free = room.f_bavail * room.f_frsize
            (disk / "filler").write_bytes(bytes(free - pages * _PAGE))
            try:
                save(large, path)
            except OSError as error:
                named = error.filename == str(path) and error.errno == 28
                save(large, folder / "elsewhere")
                kept = _bits(load(path, "cpu")) == _bits(small)
                kept &= _bits(load(folder / "elsewhere", "cpu")) == _bits(large)
                held += named and kept and sorted(os.listdir(disk)) == ["filler", "model"]
    return {"tried": n, "held": held, "outcomes": {}}


def cycles(folder: Path, n: int, seed: int) -> dict[str, Any]:
    """Fit, predict, save and load, again and again: memory and open files beyond the first ones.

    Every second fit's steps are captured, where Numba is installed.
    """
    import xpmlp_numpy

    from xpmlp import MLPClassifier, load, save

    X, y = _data()
    resident, descriptors = [], []
    for number in range(_WARM_UP + n):
        xpmlp_numpy.SECONDS_TO_CAPTURE = 0.0 if number % 2 else float("inf")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = MLPClassifier((16, 8), max_iter=2, dropout=0.1, random_state=seed + number)
            model.fit(X, y).predict(X)
        save(model, folder / "model")
        load(folder / "model", "cpu").predict(X)
        resident.append(int(Path("/proc/self/statm").read_text("ascii").split()[1]) * _PAGE)
        descriptors.append(len(os.listdir("/proc/self/fd")))
    grown = (np.mean(resident[-20:]) - np.mean(resident[_WARM_UP - 20 : _WARM_UP])) / n
    return {
        "tried": n,
        "held": n if descriptors[-1] == descriptors[_WARM_UP - 1] else 0,
        "outcomes": {"descriptors before": descriptors[_WARM_UP - 1], "after": descriptors[-1]},
        "kilobytes": float(grown) / 1e3,
    }


class _Child:
    """A process that calls ``function(folder, captured)``; it trains when this returns.

    A fork, in which nothing has to be imported and compiled again.
    """

    def __init__(self, function: Callable[..., Any], folder: Path, captured: bool) -> None:
        arguments = (folder, captured)
        self.process = get_context("fork").Process(target=function, args=arguments)
        self.process.start()
        while not any(folder.rglob("*epoch*")):  # a checkpoint, whole or not
            if self.process.exitcode is not None:
                raise RuntimeError(f"{function.__name__} ended with {self.process.exitcode}")
            sleep(0.001)


def _data() -> tuple[Any, Any]:
    X = np.random.default_rng(0).standard_normal((400, 20))
    return X, (X[:, 0] * X[:, 1] > 0).astype("int64")


def _bits(network: Any) -> bytes:
    return np.asarray(network.parameters).tobytes()


def _checkpoints(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob("epoch*.safetensors"))


@contextmanager
def _mounted(folder: Path, n_bytes: int) -> Any:
    options = ["-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", str(folder)]
    subprocess.run(["mount", *options], check=True, capture_output=True, text=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)
