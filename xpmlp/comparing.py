"""How far two arrays are apart, and where: on the host, for any library."""

from __future__ import annotations

import math
from typing import Any

from xpmlp.backends import host


def assert_close(actual: Any, desired: Any, tolerance: float, what: str) -> float:
    """Raise unless two arrays agree in shape and dtype, and in values to a relative tolerance.

    Parameters
    ----------
    actual, desired : NumPy array
    tolerance : float
        Of the largest difference, relative to the largest finite magnitude in `desired`; 0 asks
        for the same bits. NaN and infinities must be in the same places.
    what : str
        Named in the message.

    Returns
    -------
    float
        The largest difference.

    Raises
    ------
    AssertionError
        With the worst place and its values.
    """
    if actual.shape != desired.shape or actual.dtype != desired.dtype:
        raise AssertionError(
            f"{what}: got {actual.dtype} of shape {actual.shape}, expected {desired.dtype} of "
            f"shape {desired.shape}"
        )
    place, difference = worst_place(actual, desired)
    if tolerance == 0.0:
        other = other_bits(actual, desired)
        difference = 0.0 if other is None else difference or math.inf
        place = place if other is None else other
    if not difference <= tolerance:
        raise AssertionError(
            f"{what}{list(place)} is {actual[place]!r}, expected {desired[place]!r}: a relative "
            f"difference of {difference:.1e}, allowed {tolerance:.1e}"
        )
    return difference


def worst_place(actual: Any, desired: Any, floor: float = 0.0) -> tuple[tuple[int, ...], float]:
    """The place of the largest difference, and its size relative to the largest magnitude.

    Magnitudes below `floor` count as that. The size is infinite where one value is finite and
    the other is not, or two values that are not finite differ.
    """
    xp = host().xp
    if actual.size == 0:
        return (), 0.0
    with host().context():
        a, b = actual.astype("float64"), desired.astype("float64")
        same = (a == b) | (xp.isnan(a) & xp.isnan(b))
        gap = xp.where(same, 0.0, xp.abs(a - b))
        gap = xp.where(xp.isfinite(gap), gap, math.inf)
        finite = xp.abs(b[xp.isfinite(b)])
        scale = max(floor, float(finite.max()) if finite.size else 0.0) or 1.0
    place = tuple(int(i) for i in xp.unravel_index(xp.argmax(gap), gap.shape))
    return place, float(gap[place]) / scale


def other_bits(actual: Any, desired: Any) -> tuple[int, ...] | None:
    """The first place where two arrays of one dtype differ in a bit; None if there is none.

    The two zeros are different; any two NaN are the same.
    """
    xp = host().xp
    if actual.tobytes() == desired.tobytes():
        return None
    differ = (actual != desired) | (xp.signbit(actual) != xp.signbit(desired))
    differ &= ~(xp.isnan(actual) & xp.isnan(desired))
    places = xp.argwhere(differ)
    return tuple(int(i) for i in places[0]) if len(places) else None


def round_to_bfloat16(x: Any) -> Any:
    """The NumPy array `x` of float32 rounded to 8 significant bits, ties to even."""
    xp = host().xp
    with host().context():
        wide = x.astype("float64")
        # The distance of neighbours; that of subnormals is the same for all.
        step = 2.0 ** (xp.maximum(xp.frexp(wide)[1], -125) - 8.0)
        return (xp.rint(wide / step) * step).astype("float32")
