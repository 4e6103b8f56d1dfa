"""Every exception and warning class that xpmlp raises, and the wording of argument errors."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterable
from contextlib import suppress
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

# Frames of these are not the user's: scikit-learn wraps `fit`.
_INSIDE = ("xpmlp", "contextlib", "sklearn")


class BackendUnavailableError(RuntimeError):
    """The requested device or adapter cannot be used on this machine; the message says why."""


class DeviceFallbackWarning(UserWarning):
    """The requested device cannot be used and the CPU was taken instead."""


class DeviceMemoryError(MemoryError):
    """The device has no memory left for an array; the message says how much there is."""


class NonFiniteLossError(ArithmeticError):
    """The loss became NaN or infinite; the message names the epoch, batch and layer."""


class TrainingInterruptedWarning(UserWarning):
    """Training ended early on an interrupt; the network holds the last finished step."""


class ModelFileError(ValueError):
    """A file is not a model of xpmlp, or is damaged."""


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, with the line outside this library that led here."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _INSIDE:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def say(text: str) -> None:
    """Print; an output that is closed, full or broken does not end what is under way."""
    with suppress(OSError, ValueError):
        print(text, flush=True)


def printable(text: str) -> str:
    r"""Text of a stranger's for a terminal or a message: what controls a terminal as ``\x1b``."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def unknown_name(argument: str, given: object, known: Iterable[str]) -> ValueError:
    """The error for a name that is not in a table: lists the known names, the nearest first."""
    ordered, hint = nearest(given, known)
    return ValueError(f"{argument}={given!r} is not known.{hint} Known: {', '.join(ordered)}.")


def nearest(given: object, known: Iterable[str]) -> tuple[list[str], str]:
    """The known names, those like `given` first, and a question where there is such a one."""
    names = sorted(known)
    near = get_close_matches(str(given).lower(), names, n=3, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return near + [name for name in names if name not in near], hint


def out_of_device_memory(
    device: str, asked: int, memory: tuple[int, int] | None
) -> DeviceMemoryError:
    """The error for an array of `asked` bytes; `memory` is what is free, and all, if known."""
    state = "whose memory is full"
    if memory:
        state = f"where {memory[0]:,} of {memory[1]:,} bytes are free"
    return DeviceMemoryError(
        f"an array of {asked:,} bytes does not fit on {device}, {state}; use smaller batches, "
        "dtype='float32' or a smaller network, delete arrays that are no longer needed, end other "
        "programs on that device, or raise the limit of its memory pool"
    )


def check_flag(argument: str, value: Any) -> None:
    """Raise TypeError unless `value` is True or False."""
    of_numpy = str(getattr(value, "dtype", "")) == "bool" and getattr(value, "ndim", 1) == 0
    if not isinstance(value, bool) and not of_numpy:
        raise TypeError(f"{argument} must be True or False, got {value!r}")


def check_number(
    argument: str,
    value: Any,
    *,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    open_minimum: bool = False,
    open_maximum: bool = False,
    integer: bool = False,
) -> None:
    """Raise unless `value` is a real (or whole) finite number in the given interval.

    Raises
    ------
    TypeError
        If `value` is not a number, is a bool, or is fractional where a whole number is expected.
    ValueError
        If it is NaN, infinite or outside the interval.
    """
    kind = "a whole number" if integer else "a number"
    left = ">" if open_minimum else ">="
    right = "<" if open_maximum else "<="
    bounds = [f"{left} {minimum:g}"] if minimum != -math.inf else []
    bounds += [f"{right} {maximum:g}"] if maximum != math.inf else []
    expected = f"{argument} must be {kind}" + (f" {' and '.join(bounds)}" if bounds else "")
    if isinstance(value, bool) or not isinstance(value, Integral if integer else Real):
        raise TypeError(f"{expected}, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    below = number <= minimum if open_minimum else number < minimum
    above = number >= maximum if open_maximum else number > maximum
    if not math.isfinite(number) or below or above:
        raise ValueError(f"{expected}, got {value!r}")
