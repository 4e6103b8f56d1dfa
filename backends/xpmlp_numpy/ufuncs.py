"""Rules as calls of ufuncs that write into reused memory, block by block.

Applied to arrays, a rule makes a temporary for each of its operations. Here it is written down once
and becomes a function with the same operations in the same order on the same dtypes, so that every
bit of the result is the same, but without temporaries.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from xpmlp.typing import Rule
from xpmlp_numpy.straightline import Source, source

Kinds = tuple[str | int, ...]


def kinds_of(outs: Sequence[Any], operands: Sequence[Any]) -> Kinds | None:
    """What is to be known of each operand; None if the rule has to be applied as it is.

    The place of the output that it is, ``"wide"`` for another array of its shape, ``"column"`` of
    shape ``(..., 1)``, ``"row"`` of shape ``(d,)`` or ``"scalar"`` for one that is broadcast,
    ``"number"``.
    """
    first = outs[0]
    dtype, shape = first.dtype, first.shape
    places = {id(out): place for place, out in enumerate(outs)} if len(outs) > 1 else {}
    kinds: list[str | int] = []
    for x in operands:
        if x is first:
            kinds.append(0)
        elif type(x) is float or type(x) is int:
            kinds.append("number")
        elif not hasattr(x, "dtype") or x.dtype != dtype:
            return None
        elif x.shape == shape:
            kinds.append(places.get(id(x), "wide"))
        elif x.size == 1:
            kinds.append("scalar")
        elif x.shape == shape[-1:]:
            kinds.append("row")
        elif x.shape == (*shape[:-1], 1):
            kinds.append("column")
        else:
            return None
    if len(outs) > 1 and any(out.dtype != dtype for out in outs):
        return None
    return tuple(kinds)


class Program:
    """A rule for outputs of a dtype and operands of certain kinds.

    Parameters
    ----------
    rule : Rule
    functions : RuleFunctions
    dtype : str
    kinds : tuple
        From :func:`kinds_of`.
    n_outs : int

    Raises
    ------
    Exception
        If the rule does what is not provided for here. Applied to arrays it may work all the same.
    """

    def __init__(self, rule: Rule, functions: Any, dtype: str, kinds: Kinds, n_outs: int) -> None:
        written: Source = source(rule, functions, dtype, kinds, n_outs)
        names = dict(written.names)
        exec(written.text, names)
        self._run, self._fixed = names["run"], names["fixed"]
        self._n_scratch, self._apart = written.n_scratch, written.apart
        self._moving = [i for i, kind in enumerate(kinds) if kind in ("wide", "column")]
        self._flat = not {"row", "column"} & {*kinds}

    def suits(self, outs: Sequence[Any], operands: Sequence[Any]) -> bool:
        """Whether nothing is written that another array, of the same memory, is read from later."""
        return not any(np.may_share_memory(outs[k], operands[i]) for k, i in self._apart)

    def __call__(self, outs: Sequence[Any], operands: Sequence[Any], n_bytes: int) -> None:
        """Apply the rule, with blocks of so many bytes if it takes more than one operation."""
        arrays = [*outs, *(operands[place] for place in self._moving)]
        fixed = self._fixed(*operands)
        if not self._n_scratch:
            self._run(*arrays, *fixed)
            return
        n_blocks = -(-outs[0].nbytes // n_bytes)
        if n_blocks > 1 and self._flat and all(x.flags.c_contiguous for x in arrays):
            arrays = [x.reshape(-1) for x in arrays]
        n, *widths = arrays[0].shape
        rows = max(1, n_bytes * n // outs[0].nbytes) if n_blocks > 1 else n
        scratch = _scratch(self._n_scratch, (rows, *widths), arrays[0].dtype)
        for start in range(0, n, rows):
            some = [x[start : start + rows] for x in arrays] if rows < n else arrays
            if start + rows > n:
                scratch = [x[: n - start] for x in scratch]
            self._run(*some, *fixed, *scratch)


class _Scratch(threading.local):
    """Memory that each thread keeps from one call to the next."""

    def __init__(self) -> None:
        self._kept = np.empty(0, "uint8")

    def __call__(self, n: int, shape: tuple[int, ...], dtype: Any) -> list[Any]:
        """`n` arrays of what values the memory happens to hold."""
        size = n * math.prod(shape) * dtype.itemsize
        if size > self._kept.size:
            self._kept = np.empty(size, "uint8")
        return [*self._kept[:size].view(dtype).reshape(n, *shape)]


_scratch = _Scratch()
