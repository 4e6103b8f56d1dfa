"""Distributions of the initial weights, and their sameness on every backend."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from optional import optional

from xpmlp import Dense, Network
from xpmlp.activations import ACTIVATIONS
from xpmlp.backends import host
from xpmlp.initializers import (
    INITIALIZERS,
    GlorotNormal,
    GlorotUniform,
    HeNormal,
    HeUniform,
    LeCunNormal,
    LeCunUniform,
    Normal,
    Orthogonal,
    Uniform,
    Zeros,
)
from xpmlp.rng import stream

stats = optional("scipy.stats")

SHAPE = (240, 160)
COUNT = SHAPE[0] * SHAPE[1]

# Initializer and the standard deviation it promises for SHAPE.
UNIFORMS = {
    "uniform": (Uniform(), 0.05 / math.sqrt(3)),
    "uniform limit": (Uniform(limit=2.0), 2.0 / math.sqrt(3)),
    "glorot": (GlorotUniform(), math.sqrt(2 / (240 + 160))),
    "he": (HeUniform(), math.sqrt(2 / 240)),
    "lecun": (LeCunUniform(), math.sqrt(1 / 240)),
}
NORMALS = {
    "normal": (Normal(), 0.05),
    "normal std": (Normal(std=3.0), 3.0),
    "glorot": (GlorotNormal(), math.sqrt(2 / (240 + 160))),
    "he": (HeNormal(), math.sqrt(2 / 240)),
    "lecun": (LeCunNormal(), math.sqrt(1 / 240)),
}
BOTH = {f"{name} uniform": case for name, case in UNIFORMS.items()}
BOTH |= {f"{name} normal": case for name, case in NORMALS.items()}


def draw(init: Any, shape: tuple[int, int] = SHAPE, seed: int = 0, layer: int = 0) -> np.ndarray:
    return init.draw(*shape, stream(seed, "init", layer=layer))


def weights(backend: Any, init: Any, dtype: str = "float64", seed: int = 5) -> list[np.ndarray]:
    """Weights of three layers, of which the last two have one shape."""
    layers = [Dense(6, init=init), Dense(6, init=init), Dense(6, init=init)]
    network = Network(4, layers, backend=backend, dtype=dtype, seed=seed)
    return [backend.to_host(weight) for weight in network.weights]


def test_the_tables_have_every_initializer():
    tested = {type(init) for init, _ in BOTH.values()} | {Zeros, Orthogonal}
    assert tested == set(INITIALIZERS.values())


# --- Distributions; the bounds are five standard errors -----------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("init", "std"), BOTH.values(), ids=BOTH)
def test_mean_and_variance(init, std, seed):
    drawn = draw(init, seed=seed)
    assert drawn.shape == SHAPE
    assert drawn.dtype == np.float64
    kurtosis = 1.8 if "Uniform" in type(init).__name__ else 3.0
    assert abs(drawn.mean()) < 5 * std / math.sqrt(COUNT)
    assert abs(drawn.var() / std**2 - 1) < 5 * math.sqrt((kurtosis - 1) / COUNT)


@pytest.mark.parametrize(("init", "std"), UNIFORMS.values(), ids=UNIFORMS)
def test_uniforms_fill_their_interval(init, std):
    drawn, limit = draw(init), math.sqrt(3) * std
    assert np.abs(drawn).max() <= limit
    assert drawn.min() < -0.999 * limit
    assert drawn.max() > 0.999 * limit
    assert stats.kstest(drawn.ravel(), stats.uniform(-limit, 2 * limit).cdf).pvalue > 1e-3


@pytest.mark.parametrize(("init", "std"), NORMALS.values(), ids=NORMALS)
def test_normals_are_normal(init, std):
    drawn = draw(init)
    assert stats.kstest(drawn.ravel(), stats.norm(0, std).cdf).pvalue > 1e-3
    assert np.abs(drawn).max() > 3.5 * std  # not truncated


@pytest.mark.parametrize(("fan_in", "fan_out"), [(1, 1), (1, 7), (7, 1), (50, 3), (3, 50)])
@pytest.mark.parametrize("init", INITIALIZERS.values(), ids=INITIALIZERS)
def test_shape(init, fan_in, fan_out):
    drawn = draw(init(), (fan_in, fan_out))
    assert drawn.shape == (fan_in, fan_out)
    assert np.isfinite(drawn).all()


@pytest.mark.parametrize(
    ("init", "variance"),
    [
        (GlorotUniform(), 2 / 1010),
        (GlorotNormal(), 2 / 1010),
        (HeUniform(), 2 / 1000),
        (HeNormal(), 2 / 1000),
        (LeCunUniform(), 1 / 1000),
        (LeCunNormal(), 1 / 1000),
    ],
)
def test_fan_in_is_the_number_of_inputs(init, variance):
    # Ten thousand weights: six standard errors of a normal's variance are 8.5 %.
    assert draw(init, (1000, 10)).var() == pytest.approx(variance, rel=0.085)


def test_variances_keep_the_scale_of_the_signal(rng):
    # What the formulas are for: He keeps the mean square through ReLU layers, LeCun and Glorot
    # (in square layers) the variance through linear ones.
    x = rng.normal(size=(100, 200))
    for init, activation in [
        (HeNormal(), lambda z: np.maximum(z, 0)),
        (LeCunUniform(), lambda z: z),
        (GlorotUniform(), lambda z: z),
        (Orthogonal(), lambda z: z),
    ]:
        a = x
        for layer in range(6):
            a = activation(a @ draw(init, (200, 200), layer=layer))
        assert 0.5 < np.mean(a**2) < 2, init.name


# --- Orthogonal ---------------------------------------------------------------------------------


@pytest.mark.parametrize("gain", [1.0, 0.5, -2.0])
@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (25, 25), (1, 9), (9, 1), (1, 1)])
def test_orthonormal_rows_or_columns(shape, gain):
    drawn = draw(Orthogonal(gain), shape)
    assert drawn.shape == shape
    gram = drawn.T @ drawn if shape[0] >= shape[1] else drawn @ drawn.T
    np.testing.assert_allclose(gram, gain**2 * np.eye(min(shape)), atol=1e-13)


def test_orthogonal_matrices_have_no_preferred_sign():
    # Without the signs of R's diagonal the first entries of Q would all have one sign.
    first = [draw(Orthogonal(), (4, 4), seed=seed)[0, 0] for seed in range(200)]
    assert 60 < np.sum(np.array(first) > 0) < 140
    determinants = [np.linalg.det(draw(Orthogonal(), (3, 3), seed=seed)) for seed in range(200)]
    assert 60 < np.sum(np.array(determinants) > 0) < 140


def test_zeros():
    assert not draw(Zeros()).any()


# --- One set of weights for every backend and dtype ---------------------------------------------


@pytest.mark.parametrize("init", INITIALIZERS)
def test_same_weights_on_every_backend(init, backend):
    on_host, here = weights(host(), init), weights(backend, init)
    for expected, got in zip(on_host, here, strict=True):
        assert got.dtype == np.float64
        assert got.tobytes() == expected.tobytes()


@pytest.mark.parametrize("init", INITIALIZERS)
def test_float32_weights_are_the_rounded_ones(init, backend):
    exact, rounded = weights(backend, init), weights(backend, init, "float32")
    for expected, got in zip(exact, rounded, strict=True):
        assert got.dtype == np.float32
        assert got.tobytes() == expected.astype(np.float32).tobytes()


@pytest.mark.parametrize("init", sorted(set(INITIALIZERS) - {"zeros"}))
def test_layers_and_seeds_differ(init, backend):
    _, first, second = weights(backend, init)
    assert (first != second).all()
    again = weights(backend, init)[1]
    assert again.tobytes() == first.tobytes()
    assert (weights(backend, init, seed=6)[1] != first).all()


def test_weights_do_not_depend_on_the_layers_around():
    def second(*layers):
        return np.array(Network(4, layers, device="cpu", seed=5).weights[1])

    plain = second(Dense(6), Dense(6))
    assert (plain == second(Dense(6, "tanh", bias=False), Dense(6), Dense(3))).all()


def test_biases_start_at_zero(backend):
    network = Network(4, [Dense(3, init="normal"), Dense(2, init="he")], backend=backend)
    assert all(not backend.to_host(bias).any() for bias in network.biases)


# --- Names and arguments ------------------------------------------------------------------------

DEFAULTS = {
    "identity": GlorotUniform,
    "sigmoid": GlorotUniform,
    "tanh": GlorotUniform,
    "softmax": GlorotUniform,
    "softplus": GlorotUniform,
    "exp": GlorotUniform,
    "relu": HeUniform,
    "leaky_relu": HeUniform,
    "elu": HeUniform,
    "gelu": HeUniform,
    "gelu_tanh": HeUniform,
    "silu": HeUniform,
    "mish": HeUniform,
    "selu": LeCunNormal,
}


def test_the_default_suits_the_activation():
    assert {cls.name for cls in ACTIVATIONS.values()} == DEFAULTS.keys()
    for activation, init in DEFAULTS.items():
        assert Dense(3, activation).init == init(), activation
    assert Dense(3).init == GlorotUniform()


def test_names_and_objects():
    for name, cls in INITIALIZERS.items():
        assert Dense(3, "relu", init=name).init == cls()
    assert Dense(3, init="Xavier").init == GlorotUniform()
    assert Dense(3, init="he").init == HeUniform()
    assert Dense(3, init=Normal(0.3)).init.std == 0.3


@pytest.mark.parametrize(
    ("cls", "option", "low"),
    [(Normal, "std", -0.1), (Uniform, "limit", -1), (Orthogonal, "gain", None)],
)
def test_bad_numbers_are_named(cls, option, low):
    for value in (math.nan, math.inf, *([] if low is None else [low])):
        with pytest.raises(ValueError, match=rf"^{option} must be a number.*got {value!r}"):
            cls(value)
    for value in ("1", True, None, [0.1]):
        with pytest.raises(TypeError, match=rf"^{option} must be a number"):
            cls(value)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"^init='he_norm' is not known\. Did you mean 'he_norm"):
        Dense(3, init="he_norm")
    with pytest.raises(ValueError, match=r"glorot_uniform.*orthogonal.*zeros"):
        Dense(3, init="?")
    for value in (3, Normal, np.zeros((2, 3))):
        with pytest.raises(TypeError, match=r"^init must be a name or an instance of Initializer"):
            Dense(3, init=value)
