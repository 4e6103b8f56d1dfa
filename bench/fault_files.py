"""Damaged, forged and planted files: what `xpmlp.load` and the reader of tables make of them."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

# Endings under which the library, or its user, might have a file read.
ENDINGS = (
    "", ".safetensors", ".npy", ".npz", ".csv", ".pkl", ".pickle", ".joblib", ".pt", ".bin",
)  # fmt: skip
PROTOCOLS = (0, pickle.HIGHEST_PROTOCOL)


def truncated(folder: Path, n_lengths: int, seed: int) -> dict[str, Any]:
    """A file cut off after every byte of its header, and after `n_lengths` later ones."""
    path, whole, header = _written(folder)
    draw = random.Random(seed)
    lengths = [*range(header), *draw.choices(range(header, len(whole)), k=n_lengths)]
    return _tried(path, (whole[:length] for length in lengths))


def flipped(folder: Path, n: int, seed: int) -> dict[str, Any]:
    """A file with one of its bits changed."""
    path, whole, _ = _written(folder)
    draw = random.Random(seed)

    def contents() -> Iterator[bytes]:
        for _ in range(n):
            changed = bytearray(whole)
            changed[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
            yield bytes(changed)

    return _tried(path, contents())


def mutated(folder: Path, n: int, seed: int) -> dict[str, Any]:
    """A header changed at several places: bytes, numbers, names, whole pieces twice or missing.

    Its length is put right, so that it is not this that gives it away.
    """
    path, whole, header = _written(folder)
    draw = random.Random(seed)

    def contents() -> Iterator[bytes]:
        for _ in range(n):
            text = _mutant(whole[8:header], draw)
            yield len(text).to_bytes(8, "little") + text + whole[header:]

    return _tried(path, contents())


def signed_anew(folder: Path, n: int, seed: int) -> dict[str, Any]:
    """A description changed and given the right digest, as one who means harm would.

    Some of these are models, such as those with another seed; all others have to be refused.
    """
    from xpmlp.files import read_tensors, write_tensors

    path, _, _ = _written(folder)
    tensors, description = read_tensors(path)
    description.pop("sha256")
    text = json.dumps(description).encode()
    draw = random.Random(seed)

    def contents() -> Iterator[bytes]:
        made = 0
        while made < n:
            try:
                changed = json.loads(_mutant(text, draw))
                write_tensors(folder / "forged", tensors, changed)
            except (ValueError, TypeError, RecursionError):  # no JSON any more, or no mapping
                continue
            made += 1
            yield (folder / "forged").read_bytes()

    return _tried(path, contents(), models_too=True)


def checkpoints_signed_anew(folder: Path, n: int, seed: int) -> dict[str, Any]:
    """A checkpoint changed in its description or in an array, and given the right digest.

    A run that goes on from it has to end with finite parameters, or to be refused, at once and not
    in the midst of it.
    """
    from xpmlp.checkpoint import read_checkpoint
    from xpmlp.files import write_tensors

    _resumed(folder / "run", None)
    saved = read_checkpoint(folder / "run")
    text = json.dumps(saved.description).encode()
    draw = random.Random(seed)
    forged = folder / "epoch1-batch1.safetensors"
    outcomes: Counter[str] = Counter()
    before = peak_resident_megabytes()
    while outcomes.total() < n:
        tensors, description = dict(saved.tensors), saved.description
        try:
            if draw.randrange(4):
                description = json.loads(_mutant(text, draw))
            else:
                name = draw.choice(["parameters", *(x for x in tensors if x.startswith("callb"))])
                tensors[name] = draw.choice(_ARRAY_FAULTS)(tensors[name])
            write_tensors(forged, tensors, {"format": 2, "checkpoint": description})
        except (ValueError, TypeError, RecursionError):  # no JSON any more
            continue
        outcomes[_outcome(lambda: _resumed(folder / "run", forged))] += 1
    wanted = ("ModelFileError", "ValueError", "loaded")  # of another run: ValueError
    return {
        "tried": outcomes.total(),
        "held": sum(outcomes[name] for name in wanted),
        "outcomes": dict(outcomes),
        "megabytes": peak_resident_megabytes() - before,
    }


_ARRAY_FAULTS: tuple[Callable[[Any], Any], ...] = (
    lambda array: array * np.nan,
    lambda array: array[:1],
    lambda array: array[None],
    lambda array: array.astype("float32"),
    lambda array: array.astype("int64"),
    lambda array: -array,
)


def _resumed(folder: Path, forged: Path | None) -> None:
    """The second half of a run, or its first half, with checkpoints."""
    from xpmlp import Checkpoint, Dense, EarlyStopping, GradientNorms, Network, fit

    X = np.random.default_rng(0).standard_normal((24, 3))
    network = Network(3, [Dense(4, "tanh"), Dense(1)], device="cpu", seed=1)
    callbacks = [EarlyStopping(), GradientNorms()]
    fit(
        network, X[:16], X[:16, 0], loss="squared_error", optimizer="nadam", batch_size=8,
        validation=(X[16:], X[16:, 0]), epochs=4 if forged else 2, verbose=0, resume=forged,
        callbacks=callbacks if forged else [*callbacks, Checkpoint(folder, keep=1)],
    )  # fmt: skip
    if not np.isfinite(np.asarray(network.parameters)).all():
        raise ArithmeticError("the network is not finite")


def planted_pickles(folder: Path, n: int, seed: int) -> dict[str, Any]:
    """A pickle, and a NumPy file of pickled objects, under every ending; it would leave a trace."""
    from xpmlp import Dense, Network, fit, load
    from xpmlp.datasets import load_table

    trace = folder / "executed"
    readers: list[Callable[[str], Any]] = [
        load,
        load_table,
        lambda path: fit(
            Network(1, [Dense(1)], device="cpu"), [[0.0]], [0.0], loss="squared_error",
            resume=path, verbose=0,
        ),
    ]  # fmt: skip
    outcomes: Counter[str] = Counter()
    tried = held = 0
    for ending in ENDINGS:
        for content in _pickles(trace):
            path = folder / f"epoch1-batch1{ending}"
            path.write_bytes(content)
            for reader in readers:
                tried += 1
                outcome = _outcome(lambda reader=reader, path=path: reader(str(path)))  # type: ignore[misc]
                outcomes[outcome] += 1
                # A pickle of protocol 0 is text, and so a table of one column.
                held += not trace.exists() and outcome in ("ModelFileError", "ValueError", "loaded")
    return {"tried": tried, "held": held, "outcomes": dict(outcomes)}


def _pickles(trace: Path) -> list[bytes]:
    class Planted:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(trace),)

    contents = [pickle.dumps(Planted(), protocol) for protocol in PROTOCOLS]
    with TemporaryDirectory() as folder:
        array = np.array([[Planted()]], dtype=object)
        np.save(f"{folder}/a.npy", array)
        np.savez(f"{folder}/a.npz", X=array, y=array[0])
        contents += [Path(folder, name).read_bytes() for name in ("a.npy", "a.npz")]
    return contents


def _written(folder: Path) -> tuple[Path, bytes, int]:
    """A model file, its content, and where its header ends."""
    from xpmlp import MLPClassifier, save

    X = np.random.default_rng(0).standard_normal((24, 5))
    with _quiet():
        model = MLPClassifier((8, 4), ["gelu", "elu"], max_iter=3, random_state=0, dropout=0.1)
        model.fit(X, np.array(["yes", "no", "perhaps"])[np.arange(24) % 3])
    path = folder / "model.safetensors"
    save(model, path)
    whole = path.read_bytes()
    return path, whole, 8 + int.from_bytes(whole[:8], "little")


def _tried(path: Path, contents: Iterator[bytes], models_too: bool = False) -> dict[str, Any]:
    """What loading makes of each content, and how much memory all of it takes."""
    from xpmlp import load

    outcomes: Counter[str] = Counter()
    before = peak_resident_megabytes()
    for content in contents:
        path.write_bytes(content)
        outcomes[_outcome(lambda: load(path, "cpu"))] += 1
    wanted = outcomes["ModelFileError"] + (outcomes["loaded"] if models_too else 0)
    return {
        "tried": outcomes.total(),
        "held": wanted,
        "outcomes": dict(outcomes),
        "megabytes": peak_resident_megabytes() - before,
    }


def _outcome(call: Callable[[], Any]) -> str:
    try:
        with _quiet():
            call()
    except Exception as error:
        return type(error).__name__
    return "loaded"


def _mutant(text: bytes, draw: random.Random) -> bytes:
    """Bytes of JSON with one to four changes."""
    changed = bytearray(text)
    for _ in range(draw.randint(1, 4)):
        a = draw.randrange(len(changed) + 1)
        b = min(len(changed), a + draw.choice((1, 1, 2, 8, 64)))
        match draw.randrange(5):
            case 0:
                changed[a:b] = draw.randbytes(b - a)
            case 1:
                del changed[a:b]
            case 2:
                changed[a:a] = changed[a:b]
            case 3:
                changed[a:b] = draw.choice(_WORDS)
            case 4:
                c = draw.randrange(len(changed) + 1)
                changed[a:b] = changed[c : c + b - a]
    return bytes(changed) if changed != text else _mutant(text, draw)


_WORDS = (
    b"0", b"-1", b"1e999", b"9" * 30, b"NaN", b"null", b"true", b"{}", b"[]", b'""', b"[" * 2000,
    b'"__import__"', b'{"float":"inf"}', b'"dtype":"O"', b"\\u0000", b",", b":", b"}", b"\xff",
)  # fmt: skip


def peak_resident_megabytes() -> float:
    """The most memory of the machine that this process has had so far; Linux says it."""
    # Not getrusage's: a child begins with its parent's.
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"))
    return int(line) * 1024 / 1e6


@contextmanager
def _quiet() -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
