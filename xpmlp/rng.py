"""Addressed randomness: every draw is a function of seed, purpose, epoch, batch, layer and element.

The generator is Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
2011), which NumPy ships. It turns a 128-bit key and a 256-bit counter into random words. The key
is made from the seed and the purpose, the counter from the address; the element is the position
in the stream. Nothing is consumed, so a run draws the same numbers on every device, in any order.
"""

from __future__ import annotations

import secrets
from hashlib import blake2b
from typing import Any, NamedTuple

from xpmlp.errors import check_number


class Stream(NamedTuple):
    """The address of a sequence of draws: a Philox key and the counter it starts at."""

    key: int
    counter: int


def stream(seed: int, purpose: str, *, epoch: int = 0, batch: int = 0, layer: int = 0) -> Stream:
    """The address of the draws of one purpose.

    Parameters
    ----------
    seed : int
        The seed of the run.
    purpose : str
        What the numbers are for, such as ``"dropout"``; different purposes never share numbers.
    epoch, batch, layer : int
        Each fills one 64-bit word of the counter. The lowest word counts blocks of four 64-bit
        draws, so two addresses overlap only after 2**66 draws.

    Raises
    ------
    ValueError
        If one of these is negative or has more than 64 bits.
    """
    for name, word in (("epoch", epoch), ("batch", batch), ("layer", layer)):
        if not 0 <= word < 2**64:
            raise ValueError(f"{name} must be a whole number >= 0 and < 2**64, got {word!r}")
    digest = blake2b(f"{seed}/{purpose}".encode(), digest_size=16).digest()
    counter = epoch << 192 | batch << 128 | layer << 64
    return Stream(int.from_bytes(digest, "little"), counter)


def check_seed(seed: Any) -> int:
    """`seed` as an int; a fresh one where it is None.

    Raises
    ------
    TypeError, ValueError
        If `seed` is neither None nor a whole number from 0 on.
    """
    if seed is None:
        return secrets.randbits(63)
    check_number("seed", seed, minimum=0, integer=True)
    return int(seed)
