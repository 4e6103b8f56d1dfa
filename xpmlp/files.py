"""Files that are whole or not there, and tensors under one digest of every byte.

The format is described in ``docs/model-files.md``.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from hashlib import sha256
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from xpmlp.errors import ModelFileError, printable

# Bytes of the header that are read: names of columns and classes, and the history of a run.
MAX_HEADER = 1 << 24
_BLANK = "0" * 64
# As it stands in JSON inside of JSON. Text of the user's cannot look so: its quotes have more
# backslashes.
_DIGEST = re.compile(rb'\\"sha256\\": \\"([0-9a-f]{64})\\"')


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Any], description: Mapping[str, Any]
) -> None:
    """Write NumPy arrays and plain data to one safetensors file, at once.

    Raises
    ------
    ValueError
        If the description could not be read again: it is too long, too deep, or holds numbers or
        text that a file has no room for.
    OSError
        If the file cannot be written. An old one is intact then.
    """
    from safetensors.numpy import save

    _check_plain(description)
    text = json.dumps({**description, "sha256": _BLANK}, allow_nan=False)
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    content = bytearray(save(arrays, metadata={"xpmlp": text}))
    length = int.from_bytes(content[:8], "little")
    if length > MAX_HEADER:
        raise ValueError(
            f"names, classes and history take {length:,} bytes, a file has room for {MAX_HEADER:,}"
        )
    place = _DIGEST.search(content)
    assert place is not None
    content[slice(*place.span(1))] = sha256(content).hexdigest().encode()
    write_atomically(path, content)


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays and the description of a file that :func:`write_tensors` wrote.

    Files of format 1 have no digest; what newer ones must have is theirs to check: the
    description of a file with a digest that is right has the entry ``sha256``.

    Raises
    ------
    ModelFileError
        If it is no such file, or a byte of it has changed.
    OSError
        If it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        with open(path, "rb", opener=regular) as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or not 2 <= length <= MAX_HEADER:
                raise ValueError("it has no header")
            header = file.read(length)
            if b'"xpmlp"' not in header:
                raise ValueError("its header is another program's")
            content = start + header + file.read()
        places = [match.span(1) for match in _DIGEST.finditer(header)]
        for a, b in places[:1]:
            a, b = a + 8, b + 8
            computed = sha256(content[:a] + _BLANK.encode())
            computed.update(memoryview(content)[b:])
            if computed.hexdigest().encode() != content[a:b]:
                raise ValueError("its digest is not that of its content")
        names = json.loads(header, object_pairs_hook=_without_doubles)
        description = json.loads(names["__metadata__"]["xpmlp"], object_pairs_hook=_without_doubles)
        if not isinstance(description, dict) or ("sha256" in description) != (len(places) == 1):
            raise ValueError("its description has no digest")
        _check_plain(description)
        return load(content), description
    except (
        SafetensorError, KeyError, TypeError, ValueError, AttributeError, RecursionError,
        OverflowError,
    ) as error:  # fmt: skip
        raise not_ours(path, error) from error


def not_ours(path: str | os.PathLike[str], error: Exception) -> ModelFileError:
    """The error for a file that cannot be understood."""
    what = printable(str(error))
    return ModelFileError(f"{path} is not a model file of xpmlp, or is damaged ({what})")


def regular(path: str, flags: int) -> int:
    """An opener for `open`, of regular files only: a pipe or a device may never end, or begin.

    Raises
    ------
    ValueError
        If it is none.
    """
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # of a folder, `open` says that it is one
        os.close(descriptor)
        raise ValueError(f"{path} is no regular file")
    return descriptor


def write_atomically(path: str | os.PathLike[str], content: bytes | bytearray) -> None:
    """Write a file so that at any moment `path` is either the old one or the new one, whole.

    A link is followed; what is no regular file, such as a pipe, is written to as it is. What a
    killed process left of an earlier attempt is removed.

    Raises
    ------
    OSError
        Naming `path`, if it cannot be written. An old file is intact then.
    """
    path = os.fsdecode(path)
    if os.path.exists(path) and not os.path.isfile(path):
        Path(path).write_bytes(content)
        return
    path = Path(os.path.realpath(path))
    remove_orphans(path.parent, re.escape(path.name))
    temporary = None
    try:
        temporary, file = _open_temporary(path)
        with file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if os.name == "posix":  # while it is held; elsewhere no open file can be renamed
                os.replace(temporary, path)
        if os.name != "posix":
            os.replace(temporary, path)
    except BaseException as error:
        if temporary:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    _sync_folder(path.parent)


def _open_temporary(path: Path) -> tuple[Path, Any]:
    """A new file beside `path`, held by this process so that no other takes it for an orphan."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        file = open(temporary, "xb")  # noqa: SIM115  # it is returned
        with suppress(OSError):  # a file system without locks
            _hold(file.fileno(), wait=True)
        if temporary.exists():
            return temporary, file
        file.close()


def remove_orphans(folder: Path, name: str) -> None:
    """Temporaries of files whose names match a pattern, if no living process holds them."""
    pattern = re.compile(rf"\.{name}\.[0-9a-f]{{8}}")
    with suppress(OSError):  # what cannot be cleaned up does not keep a file from being written
        for orphan in os.listdir(folder):
            if not pattern.fullmatch(orphan):
                continue
            with suppress(OSError), open(folder / orphan, "rb") as file:
                _hold(file.fileno(), wait=False)
                (folder / orphan).unlink()


def hold_folder(folder: Path) -> Any:
    """Something whose `close` lets go of the folder; None if another run holds it.

    The end of a process lets go of it too. Where folders cannot be held, nothing is.
    """
    held = ExitStack()
    with suppress(PermissionError):  # Windows opens no folder
        descriptor = os.open(folder, os.O_RDONLY)
        held.callback(os.close, descriptor)
        try:
            _hold(descriptor, wait=False)
        except BlockingIOError:
            held.close()
            return None
        except OSError:  # a file system without locks
            pass
    return held


def _hold(descriptor: int, wait: bool) -> None:
    """Hold an open file until it is closed; OSError if another does and this is not to wait.

    Windows, where `fcntl` is missing, removes no file that is open.
    """
    try:
        import fcntl
    except ImportError:
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def _sync_folder(folder: Path) -> None:
    """Have the file's new name survive a loss of power, where folders can be synchronised."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("it names something twice")
    return made


# --- Plain data ---------------------------------------------------------------------------------

# What a description may hold, so that to walk through it and to compute with it ends soon.
MAX_DEPTH = 64
_MAX_BITS = 128  # seeds of NumPy's generators
# Of arrays of labels and names, whose text is as wide as the longest takes.
_DTYPES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16",
    "float32", "float64", "str", "object",
)  # fmt: skip
# Characters that such an array may have, for each of its text, and in any case.
_WIDTH, _ANY_WIDTH = 8, 1 << 20


def _check_plain(value: Any, depth: int = 0) -> None:
    """Refuse data that is too deep, numbers that are too large, and text that is none."""
    if depth > MAX_DEPTH:
        raise ValueError(f"its description is more than {MAX_DEPTH} levels deep")
    if isinstance(value, str):
        value.encode()  # no halves of a character
    elif isinstance(value, dict):
        for key, one in value.items():
            _check_plain(key, depth)
            _check_plain(one, depth + 1)
    elif isinstance(value, list | tuple):
        for one in value:
            _check_plain(one, depth + 1)
    elif isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise ValueError(f"a number has more than {_MAX_BITS} bits")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"a number is {value}")


def _no_object(value: Any) -> Any:
    raise TypeError(f"{value!r} cannot be saved")


def _no_kind(kind: str, content: Any) -> Any:
    raise ValueError(f"{kind!r} is not known")


def encode(value: Any, other: Callable[[Any], Any] = _no_object) -> Any:
    """A value as what JSON holds; what JSON has no word for becomes ``{kind: content}``.

    Parameters
    ----------
    value : object
        None, a truth value, number, text, or a list, tuple, mapping or vector of such.
    other : callable, optional
        Encodes what else there is, as text or as ``{kind: content}``.

    Raises
    ------
    TypeError
        If it is something else.
    ValueError
        If it is a vector of text of which one is far longer than most, or a mapping with keys
        that are neither text nor numbers.
    """
    if value is None or isinstance(value, bool | str):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        number = float(value)
        return number if math.isfinite(number) else {"float": str(number)}
    if isinstance(value, list):
        return [encode(one, other) for one in value]
    if isinstance(value, tuple):
        return {"tuple": [encode(one, other) for one in value]}
    if isinstance(value, np.ndarray):
        dtype = "str" if value.dtype.kind == "U" else value.dtype.name
        if dtype not in _DTYPES or value.ndim != 1:
            raise TypeError(f"an array of shape {value.shape} and dtype {value.dtype}")
        _check_width(value.tolist())
        return {"array": [encode(one, other) for one in value.tolist()], "dtype": dtype}
    if isinstance(value, Mapping):
        _check_keys(value)
        pairs = [[encode(key, other), encode(one, other)] for key, one in value.items()]
        return {"mapping": pairs}
    return other(value)


def decode(value: Any, other: Callable[[str, Any], Any] = _no_kind) -> Any:
    """The inverse of :func:`encode`.

    Raises
    ------
    TypeError, ValueError
        If it cannot be understood.
    """
    if isinstance(value, list):
        return [decode(one, other) for one in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"array", "dtype"}:
        return _vector(decode(value["array"], other), value["dtype"])
    if len(value) != 1:
        raise ValueError(f"{value!r} is not understood")
    kind, content = next(iter(value.items()))
    if kind == "float" and content in ("inf", "-inf", "nan"):
        return float(content)
    if kind == "tuple" and isinstance(content, list):
        return tuple(decode(one, other) for one in content)
    if kind == "mapping" and isinstance(content, list):
        keys = [decode(key, other) for key, _ in content]
        _check_keys(keys)
        return dict(zip(keys, (decode(one, other) for _, one in content), strict=True))
    return other(kind, content)


def check_alike(name: str, value: Any, start: Any) -> None:
    """Refuse what is not of the kind that it had at the start: of what a run is taken up with.

    An array must be of that shape and dtype, and finite; a tuple of as many, and each of its kind.
    Lists and mappings may have grown, and None may have become anything but an array.

    Raises
    ------
    ValueError
        Naming it.
    """
    if isinstance(start, np.ndarray) and isinstance(value, np.ndarray):
        alike = value.shape == start.shape and value.dtype == start.dtype and is_finite(value)
    elif isinstance(start, tuple) and isinstance(value, tuple) and len(value) == len(start):
        for one, at_start in zip(value, start, strict=True):
            check_alike(name, one, at_start)
        return
    elif start is None:
        alike = not isinstance(value, np.ndarray)
    elif type(start) in (int, float):
        alike = type(value) in (int, float)
    else:
        alike = type(value) is type(start) and not isinstance(start, np.ndarray | tuple)
    if not alike:
        raise ValueError(f"{name} is of another kind than {_kind(start)}: {_kind(value)}")


def is_finite(array: Any) -> bool:
    """Whether an array holds no NaN and no infinity."""
    return array.dtype.kind not in "fc" or bool(np.isfinite(array).all())


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        what = "" if is_finite(value) else ", not finite"
        return f"an array of shape {value.shape} and dtype {value.dtype}{what}"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, tuple) else repr(value)


def _vector(values: Any, dtype: Any) -> Any:
    if dtype not in _DTYPES:
        raise ValueError(f"dtype {dtype!r} is not known")
    if not isinstance(values, list):
        raise ValueError("an array must be a list")
    if dtype == "str" and not all(isinstance(one, str) for one in values):
        raise ValueError("an array of text holds something else")
    _check_width(values)
    made = np.array(values, dtype)
    if made.ndim != 1:
        raise ValueError("an array must be a vector")
    return made


def _check_keys(keys: Iterable[Any]) -> None:
    """Refuse keys that may share one hash in any number, such as tuples: each is compared to all.

    The hash of a number is its rest by 2**61 - 1, that of text is random.
    """
    for key in keys:
        small = isinstance(key, Integral) and int(key).bit_length() <= 64
        if not small and not isinstance(key, str | float | np.floating | np.bool_):
            raise ValueError(f"a key must be text or a number of at most 64 bits, got {key!r}")


def _check_width(values: list[Any]) -> None:
    """Refuse text of which one is so long that an array, as wide as this, takes all memory."""
    lengths = [len(one) for one in values if isinstance(one, str)]
    if len(values) * max(lengths, default=0) > _WIDTH * (len(values) + sum(lengths)) + _ANY_WIDTH:
        raise ValueError(
            f"of {len(values):,} names or classes one is {max(lengths):,} characters long, far "
            "longer than most"
        )
