"""Fuzz targets for what comes from strangers: model files, checkpoints and tables.

``python tests/fuzz.py model tests/corpus/model -max_total_time=600`` looks for inputs that are
neither understood nor refused, guided by the library's coverage; it takes ``pip install atheris``.
The options are libFuzzer's. What reaches other lines is kept in ``tests/corpus``, which the tests
run through.
"""

from __future__ import annotations

import json
import sys
import warnings
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

ROOT = Path(__file__).parent.parent
RAW, SIGNED = b"r", b"s"


def model(content: bytes, path: Path) -> str:
    """A model file: after the letter r as it is, after an s its description.

    The description follows the number of its parameters, in two bytes, and is given a digest that
    is right: a fuzzer would not guess it.
    """
    import numpy as np

    from xpmlp import ModelFileError, load
    from xpmlp.files import write_tensors

    kind, body = content[:1], content[1:]
    if kind == RAW:
        path.write_bytes(body)
    elif kind == SIGNED:
        try:
            description = json.loads(body[2:])
            n = int.from_bytes(body[:2], "little")
            tensors = {"parameters": np.ones(n, description["dtype"])}
            if "pipeline" in description:
                width = min(description["n_features"], 100)
                tensors |= {"scaler.shift": np.zeros(width), "scaler.factor": np.ones(width)}
            write_tensors(path, tensors, description)
        except Exception:  # it cannot be written, so that there is nothing to load
            return "nothing"
    else:
        return "nothing"
    try:
        loaded = load(path, "cpu")
    except ModelFileError:
        return "refused"
    network = getattr(loaded, "network_", getattr(loaded, "network", loaded))
    assert np.isfinite(network.parameters).all()
    return "understood"


def checkpoint(content: bytes, path: Path) -> str:
    """A checkpoint, from which a tiny run goes on: as it is, or its description, as above.

    The description follows two bytes, which say what array is changed, and how. Where it has no
    settings, they are those of the run.
    """
    import numpy as np

    from xpmlp import ModelFileError
    from xpmlp.files import write_tensors

    kind, body = content[:1], content[1:]
    if kind == RAW:
        path.write_bytes(body)
    elif kind == SIGNED and len(body) > 2:
        saved = half_a_run()
        try:
            description = {"settings": saved.description["settings"], **json.loads(body[2:])}
            tensors = dict(saved.tensors)
            name = sorted(tensors)[body[0] % len(tensors)]
            faults = [
                lambda array: array,
                lambda array: np.full_like(array, np.nan),
                lambda array: array.ravel()[:1],
                lambda array: array.astype("float32"),
                lambda array: -1e3 * array,
            ]
            tensors[name] = faults[body[1] % len(faults)](tensors[name])
            write_tensors(path, tensors, {"format": 2, "checkpoint": description})
        except Exception:  # it cannot be written, so that there is nothing to go on from
            return "nothing"
    else:
        return "nothing"
    model = tiny()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(*rows(), resume=path)
    except ModelFileError:
        return "refused"
    except ValueError as error:  # another run's, or one that diverges
        if "resume=" not in str(error) and "non-finite" not in str(error):
            raise
        return "refused"
    assert np.isfinite(model.network_.parameters).all()
    assert all(isinstance(value, float) for value in model.loss_curve_)
    return "understood"


def tiny(*callbacks: object, epochs: int = 3) -> Any:
    """An estimator with all that remembers something."""
    from xpmlp import EarlyStopping, GradientNorms, MLPClassifier

    return MLPClassifier(
        (3,), solver="sgd", learning_rate="adaptive", early_stopping=True, batch_size=8,
        random_state=0, max_iter=epochs, device="cpu",
        callbacks=[EarlyStopping("loss"), GradientNorms(), *callbacks],
    )  # fmt: skip


def rows() -> tuple[Any, Any]:
    import numpy as np

    X = np.arange(60.0).reshape(30, 2) % 7.0
    return X, np.arange(30) % 2


@cache
def half_a_run() -> Any:
    """The newest checkpoint of its first epochs."""
    from xpmlp import Checkpoint
    from xpmlp.checkpoint import read_checkpoint

    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tiny(Checkpoint(folder, every=0.5), epochs=2).fit(*rows())
        return read_checkpoint(folder)


def csv(content: bytes, path: Path) -> str:
    """A table as text."""
    import numpy as np

    from xpmlp.datasets import load_table
    from xpmlp.experiment import encode_target

    path.write_bytes(content)
    try:
        table = load_table(str(path))
        encode_target(table, table.columns[-1], "auto")  # as the command line does
        assert np.isfinite(table.features(table.columns[:-1])).all()
    except ValueError:
        return "refused"
    return "understood"


TARGETS = {
    "model": (model, "m.safetensors"),
    "checkpoint": (checkpoint, "epoch1-batch1.safetensors"),
    "csv": (csv, "t.csv"),
}


def main() -> None:
    import atheris

    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: fuzz.py {'|'.join(TARGETS)} [FOLDER] [-max_total_time=SECONDS]")
    target, name = TARGETS[sys.argv.pop(1)]
    sys.path[:0] = [str(ROOT), str(ROOT / "backends")]
    path = Path(gettempdir()) / name
    warnings.simplefilter("error")
    with atheris.instrument_imports(include=["xpmlp"]):
        import xpmlp.estimators
        import xpmlp.experiment  # noqa: F401

    def run(content: bytes) -> None:
        target(content, path)

    atheris.Setup(sys.argv, run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
