"""Fuzz targets for what comes from strangers: model files and tables.

``python tests/fuzz.py model tests/corpus/model -max_total_time=600`` looks for inputs that are
neither understood nor refused, guided by the library's coverage; it takes ``pip install atheris``.
The options are libFuzzer's. What reaches other lines is kept in ``tests/corpus``, which the tests
run through.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from tempfile import gettempdir

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


TARGETS = {"model": (model, "m.safetensors"), "csv": (csv, "t.csv")}


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
