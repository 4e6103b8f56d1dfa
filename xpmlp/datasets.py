"""Tables for the command line: scikit-learn's small sets, CSV files and NumPy files."""

from __future__ import annotations

import csv
import zlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from xpmlp.errors import unknown_name
from xpmlp.files import regular

BUILT_IN = ("breast_cancer", "diabetes", "digits", "iris", "wine", "xor")
_MAX_CLASSES = 20  # more distinct whole numbers than this are taken as a quantity


@dataclass(frozen=True)
class Table:
    """Named columns.

    Attributes
    ----------
    name : str
    columns : list of str
        Names of all columns, the target's among them where there is one.
    values : dict of str to NumPy array of shape (n,)
        Numbers, or text.
    target : str or None
        The column that the data itself says is the target.
    classes : list of str or None
        Its classes in their own order, where they have one.
    test_size : float
        Part of the rows to test on, unless the user says otherwise.
    """

    name: str
    columns: list[str]
    values: dict[str, Any]
    target: str | None = None
    classes: list[str] | None = None
    test_size: float = 0.25

    def __len__(self) -> int:
        return len(self.values[self.columns[0]]) if self.columns else 0

    def features(self, names: list[str]) -> Any:
        """Columns as a float matrix of shape ``(n, len(names))``, float32 if all of them are.

        Raises
        ------
        ValueError
            If a column is missing, or holds text, missing values, NaN or infinity.
        """
        if not names:
            raise ValueError(f"{self.name} has no column besides the target")
        for name in names:
            self._check_numbers(name)
        single = all(self.values[name].dtype == np.float32 for name in names)
        matrix = np.stack([self.values[name] for name in names], axis=1)
        return matrix.astype(np.float32 if single else np.float64)

    def column(self, name: str) -> Any:
        """One column.

        Raises
        ------
        ValueError
            If there is none of that name.
        """
        if name not in self.values:
            error = unknown_name("column", name, self.columns)
            raise ValueError(f"{self.name}: {error}")
        return self.values[name]

    def _check_numbers(self, name: str) -> None:
        column = self.column(name)
        if column.dtype.kind not in "biuf":
            row = next((i for i, text in enumerate(column) if _number(text) is None), 0)
            what = repr(str(column[row])) if str(column[row]).strip() else "no value"
            raise ValueError(
                f"column {name!r} of {self.name} must hold numbers, "
                f"got {what} in data row {row + 1}; encode, fill or drop it"
            )
        if not np.isfinite(column).all():
            row = int(np.flatnonzero(~np.isfinite(column))[0])
            raise ValueError(
                f"column {name!r} of {self.name} must hold finite numbers, "
                f"got {column[row]} in data row {row + 1}"
            )


def load_table(source: str) -> Table:
    """A built-in set by name, or a ``.csv``, ``.npy`` or ``.npz`` file by path.

    Raises
    ------
    ValueError
        If it is neither, is empty, is a pipe or a device, or cannot be understood.
    OSError
        If the file cannot be read.
    """
    if source in BUILT_IN:
        return _built_in(source)
    path = Path(source)
    readers = {".csv": _read_csv, ".npy": _read_npy, ".npz": _read_npz}
    if path.suffix.lower() not in readers:
        if not path.suffix:
            raise unknown_name("data", source, BUILT_IN)
        raise ValueError(f"data={source!r} must be one of {', '.join(readers)} or a built-in set")
    table = readers[path.suffix.lower()](path)
    if len(table) == 0:
        raise ValueError(f"{source} holds no data rows")
    return table


def is_class_target(y: Any) -> bool:
    """Whether a target column holds classes: text, booleans, or a few distinct whole numbers."""
    if y.dtype.kind not in "iuf":
        return True
    if y.dtype.kind == "f" and not (np.isfinite(y).all() and (y == np.floor(y)).all()):
        return False
    return len(np.unique(y)) <= _MAX_CLASSES


def _built_in(name: str) -> Table:
    if name == "xor":
        X = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        return replace(_table(name, ["a", "b"], X, np.array([0, 1, 1, 0])), test_size=0.0)
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    features = [str(column) for column in bunch.feature_names]
    if name not in ("breast_cancer", "iris", "wine"):
        return _table(name, features, bunch.data, bunch.target)
    classes = bunch.target_names.astype(str)
    table = _table(name, features, bunch.data, classes[bunch.target])
    return replace(table, classes=classes.tolist())


def _numbered(n: int) -> list[str]:
    return [f"column{i}" for i in range(n)]


def _table(name: str, features: list[str], X: Any, y: Any = None) -> Table:
    values = {feature: X[:, i] for i, feature in enumerate(features)}
    if y is None:
        return Table(name, features, values)
    return Table(name, [*features, "target"], {**values, "target": y}, "target")


def _read_csv(path: Path) -> Table:
    with open(path, encoding="utf-8-sig", newline="", opener=regular) as file:
        try:
            rows = [row for row in csv.reader(file, strict=True) if row]
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read as CSV ({error})") from None
    if not rows:
        raise ValueError(f"{path} is empty")
    if all(_number(cell) is not None for cell in rows[0]):
        names = _numbered(len(rows[0]))
    else:
        names = [cell.strip() for cell in rows.pop(0)]
    if len(names) == 1 and ";" in names[0]:
        raise ValueError(f"{path}: columns are separated by commas, got one column {names[0]!r}")
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise ValueError(f"{path} has the column {doubled[0]!r} twice")
    for number, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise ValueError(
                f"{path} has {len(row)} values in data row {number}, expected {len(names)}"
            )
    columns = [_column(cells) for cells in zip(*rows, strict=True)] or [np.empty(0)] * len(names)
    return Table(str(path), names, dict(zip(names, columns, strict=True)))


def _column(cells: tuple[str, ...]) -> Any:
    numbers = [_number(cell) for cell in cells]
    if any(number is None for number in numbers):
        # Of objects: an array of text is as wide, in every row, as its longest cell.
        return np.array([cell.strip() for cell in cells], dtype=object)
    return np.array(numbers, dtype=float)


def _number(text: str) -> float | None:
    if "_" in text:  # Python would take 1_000 for a number
        return None
    try:
        return float(text)
    except ValueError:
        return None


def _read_npy(path: Path) -> Table:
    array = _load(path)
    if not isinstance(array, np.ndarray) or array.ndim != 2:
        raise ValueError(
            f"{path} must hold one 2-D array, got {getattr(array, 'shape', 'several')}"
        )
    return _table(str(path), _numbered(array.shape[1]), array)


def _read_npz(path: Path) -> Table:
    arrays = _load(path)
    if isinstance(arrays, np.ndarray) or "X" not in arrays:
        given = "one array" if isinstance(arrays, np.ndarray) else ", ".join(arrays) or "none"
        raise ValueError(f"{path} must hold an array named X and, for training, y; got {given}")
    X = arrays["X"]
    if X.ndim < 1:
        raise ValueError(f"{path}: X must have rows and columns, got shape {X.shape}")
    X = X.reshape(len(X), -1)
    y = arrays.get("y")
    if y is not None and y.shape != X.shape[:1]:
        raise ValueError(f"{path}: y must have shape ({len(X)},), got {y.shape}")
    return _table(str(path), _numbered(X.shape[1]), X, y)


def _load(path: Path) -> Any:
    with open(path, "rb", opener=regular) as file:
        try:
            loaded = np.load(file, allow_pickle=False)
            single = isinstance(loaded, np.ndarray)
            arrays = {"array": loaded} if single else {name: loaded[name] for name in loaded}
        except (ValueError, EOFError, OSError, MemoryError, BadZipFile, zlib.error) as error:
            raise ValueError(f"{path} cannot be read as a NumPy file ({error})") from None
    for name, array in arrays.items():
        # Text of no width has any number of rows in no bytes, as have rows without columns.
        if array.dtype.kind not in "biufSU" or not array.dtype.itemsize:
            raise ValueError(f"{path}: {name} must hold real numbers or text, got {array.dtype}")
        if array.size == 0:
            raise ValueError(f"{path}: {name} must have rows and columns, got shape {array.shape}")
    arrays = {
        name: np.char.decode(array) if array.dtype.kind == "S" else array
        for name, array in arrays.items()
    }
    return arrays["array"] if single else arrays
