"""Initial weights, drawn on the host in float64 and moved, so that every device starts alike."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from xpmlp.backends import host
from xpmlp.errors import check_number
from xpmlp.rng import Stream


@dataclass(frozen=True)
class Initializer:
    """A distribution of the weights of one layer; derive from it to add one."""

    name: ClassVar[str]

    @abstractmethod
    def draw(self, fan_in: int, fan_out: int, stream: Stream) -> Any:
        """Weights of shape ``(fan_in, fan_out)`` as a float64 NumPy array."""


@dataclass(frozen=True)
class Zeros(Initializer):
    """All zero. Hidden units then never differ from each other: for output layers only."""

    name = "zeros"

    def draw(self, fan_in: int, fan_out: int, stream: Stream) -> Any:
        return host().zeros((fan_in, fan_out), "float64")


@dataclass(frozen=True)
class Normal(Initializer):
    """Normal with mean 0.

    Parameters
    ----------
    std : float, default 0.05
    """

    std: float = 0.05
    name = "normal"

    def __post_init__(self) -> None:
        check_number("std", self.std, minimum=0)

    def draw(self, fan_in: int, fan_out: int, stream: Stream) -> Any:
        return self.std * host().generator(stream).standard_normal((fan_in, fan_out))


@dataclass(frozen=True)
class Uniform(Initializer):
    """Uniform in [-limit, limit).

    Parameters
    ----------
    limit : float, default 0.05
    """

    limit: float = 0.05
    name = "uniform"

    def __post_init__(self) -> None:
        check_number("limit", self.limit, minimum=0)

    def draw(self, fan_in: int, fan_out: int, stream: Stream) -> Any:
        return self.limit * (2.0 * host().generator(stream).random((fan_in, fan_out)) - 1.0)


@dataclass(frozen=True)
class VarianceScaling(Initializer):
    """Weights whose variance depends on the layer's size; the base of Glorot, He and LeCun."""

    uniform: ClassVar[bool]

    @abstractmethod
    def variance(self, fan_in: int, fan_out: int) -> float:
        """The variance of one weight."""

    def draw(self, fan_in: int, fan_out: int, stream: Stream) -> Any:
        std = math.sqrt(self.variance(fan_in, fan_out))
        if self.uniform:  # a uniform on [-c, c] has the variance c**2 / 3
            return Uniform(math.sqrt(3.0) * std).draw(fan_in, fan_out, stream)
        return Normal(std).draw(fan_in, fan_out, stream)


@dataclass(frozen=True)
class GlorotUniform(VarianceScaling):
    """Uniform with variance ``2 / (fan_in + fan_out)`` (Glorot & Bengio 2010)."""

    name = "glorot_uniform"
    uniform = True

    def variance(self, fan_in: int, fan_out: int) -> float:
        return 2.0 / (fan_in + fan_out)


@dataclass(frozen=True)
class GlorotNormal(GlorotUniform):
    """Normal with variance ``2 / (fan_in + fan_out)`` (Glorot & Bengio 2010)."""

    name = "glorot_normal"
    uniform = False


@dataclass(frozen=True)
class HeUniform(VarianceScaling):
    """Uniform with variance ``2 / fan_in``, for ReLU (He et al. 2015)."""

    name = "he_uniform"
    uniform = True

    def variance(self, fan_in: int, fan_out: int) -> float:
        return 2.0 / fan_in


@dataclass(frozen=True)
class HeNormal(HeUniform):
    """Normal with variance ``2 / fan_in``, for ReLU (He et al. 2015)."""

    name = "he_normal"
    uniform = False


@dataclass(frozen=True)
class LeCunUniform(VarianceScaling):
    """Uniform with variance ``1 / fan_in`` (LeCun et al. 1998)."""

    name = "lecun_uniform"
    uniform = True

    def variance(self, fan_in: int, fan_out: int) -> float:
        return 1.0 / fan_in


@dataclass(frozen=True)
class LeCunNormal(LeCunUniform):
    """Normal with variance ``1 / fan_in``, for SELU (LeCun et al. 1998)."""

    name = "lecun_normal"
    uniform = False


@dataclass(frozen=True)
class Orthogonal(Initializer):
    """A random matrix with orthonormal rows or columns, whichever are fewer (Saxe et al. 2014).

    Parameters
    ----------
    gain : float, default 1.0
        The matrix is multiplied by this.
    """

    gain: float = 1.0
    name = "orthogonal"

    def __post_init__(self) -> None:
        check_number("gain", self.gain)

    def draw(self, fan_in: int, fan_out: int, stream: Stream) -> Any:
        xp = host().xp
        tall = (
            host().generator(stream).standard_normal((max(fan_in, fan_out), min(fan_in, fan_out)))
        )
        q, r = xp.linalg.qr(tall)
        # The signs of R's diagonal make Q uniform over the orthogonal matrices (Mezzadri 2007).
        q = q * xp.sign(xp.linalg.diagonal(r))
        return self.gain * (q if fan_in >= fan_out else q.T)


INITIALIZERS: dict[str, type[Initializer]] = {
    cls.name: cls
    for cls in (
        Zeros, Normal, Uniform, GlorotUniform, GlorotNormal, HeUniform, HeNormal, LeCunUniform,
        LeCunNormal, Orthogonal,
    )
}  # fmt: skip
INITIALIZERS |= {
    "glorot": GlorotUniform,
    "xavier": GlorotUniform,
    "he": HeUniform,
    "lecun": LeCunUniform,
}
