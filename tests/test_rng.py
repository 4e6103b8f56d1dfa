"""Addressed randomness: what one address draws, that no two share numbers, and dropout."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
from optional import optional

from xpmlp import Dense, Dropout, Network, rng
from xpmlp.backends import Backend, host
from xpmlp.layers import DropoutStage
from xpmlp.program import Arena

stats = optional("scipy.stats")

each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def uniforms(backend: Backend, address: rng.Stream, shape: tuple[int, ...] = (1000,)) -> np.ndarray:
    out = backend.zeros(shape, "float32")
    backend.fill_uniform(out, address)
    return backend.to_host(out)


def words(address: rng.Stream, count: int = 256) -> list[int]:
    """The 64-bit words of a stream, which unlike 24-bit uniforms never collide by chance."""
    return host().generator(address).bit_generator.random_raw(count).tolist()


# --- Addresses ----------------------------------------------------------------------------------


def test_the_same_address_draws_the_same(backend):
    address = {"epoch": 3, "batch": 5, "layer": 7}
    first = uniforms(backend, rng.stream(11, "dropout", **address))
    assert rng.stream(11, "dropout", **address) == rng.stream(11, "dropout", **address)
    assert uniforms(backend, rng.stream(11, "dropout", **address)).tobytes() == first.tobytes()


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 12},
        {"seed": 0},
        {"seed": 2**63},
        {"seed": 2**200},
        {"purpose": "shuffle"},
        {"purpose": ""},
        {"epoch": 4},
        {"batch": 4},
        {"layer": 4},
        {"epoch": 0, "batch": 3},
        {"epoch": 2**64 - 1},
        {"batch": 2**64 - 1},
        {"layer": 2**64 - 1},
    ],
    ids=str,
)
def test_another_address_draws_others(other, backend):
    address: dict[str, Any] = {"seed": 11, "purpose": "dropout", "epoch": 3, "batch": 3, "layer": 3}
    first = uniforms(backend, rng.stream(**address))
    second = uniforms(backend, rng.stream(**{**address, **other}))
    # Two independent uniforms of 24 bits are equal once in 2**24 times.
    assert np.mean(first == second) < 0.01
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.16  # five standard errors


def test_addresses_share_no_numbers():
    addresses = [
        rng.stream(seed, purpose, epoch=epoch, batch=batch, layer=layer)
        for seed, purpose, epoch, batch, layer in product(
            (0, 1), ("init", "shuffle", "dropout"), (0, 1, 2), (0, 1, 2, 500), (0, 1, 2)
        )
    ]
    assert len(set(addresses)) == len(addresses)
    drawn = [word for address in addresses for word in words(address)]
    assert len(set(drawn)) == len(drawn)


def test_neighbouring_streams_are_far_apart():
    # The lowest word of the counter counts blocks of four; the next is the layer. So even a very
    # long stream does not run into its neighbour: here one starts a million blocks later.
    address = rng.stream(0, "dropout", layer=1)
    later = rng.Stream(address.key, address.counter + 10**6)
    neighbour = rng.stream(0, "dropout", layer=2)
    assert not set(words(address, 4096)) & set(words(neighbour, 4096))
    assert not set(words(later, 4096)) & set(words(neighbour, 4096))


def test_the_text_of_an_address_is_unambiguous():
    # The seed and the purpose are joined: neither can lend the other a character.
    pairs = [(1, "2/a"), (12, "a"), (1, "a"), (1, "/a"), (11, "a"), (1, "1/a")]
    assert len({rng.stream(seed, purpose).key for seed, purpose in pairs}) == len(pairs)


def test_keys_and_counters_fit_the_generator():
    address = rng.stream(2**63, "x", epoch=2**64 - 1, batch=2**64 - 1, layer=2**64 - 1)
    assert 0 <= address.key < 2**128
    assert 0 <= address.counter < 2**256
    assert len(words(address, 4)) == 4


def test_a_seed_means_the_same_tomorrow():
    # Written down once: hashes of strings, for instance, differ from process to process.
    address = rng.stream(7, "init", epoch=1, batch=2, layer=3)
    assert address.key == 0x209CA8F099FFD7E81B194471CEF1AB6
    assert address.counter == 1 << 192 | 2 << 128 | 3 << 64
    assert words(address, 2) == [6229081388764855815, 4716990721388464915]


# --- Draws --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1,), (7,), (33, 5), (4, 3, 2), (20000,), (0,)])
def test_uniforms_are_equal_to_the_bit_on_every_backend(shape, backend):
    address = rng.stream(5, "dropout", epoch=1, batch=2, layer=3)
    generator = np.random.Generator(np.random.Philox(key=address.key, counter=address.counter))
    expected = generator.random(shape, dtype=np.float32)
    got = uniforms(backend, address, shape)
    assert got.dtype == np.float32
    assert got.shape == shape
    assert got.tobytes() == expected.tobytes()
    assert uniforms(host(), address, shape).tobytes() == expected.tobytes()


def test_draws_do_not_depend_on_how_many_are_drawn(backend):
    # Uniforms of float32 come two from a word: odd counts must not shift what follows.
    address = rng.stream(5, "dropout")
    long = uniforms(backend, address, (1000,))
    for count in (1, 2, 3, 5, 8, 999):
        assert uniforms(backend, address, (count,)).tobytes() == long[:count].tobytes()
    assert uniforms(backend, address, (100, 10)).tobytes() == long.tobytes()


def test_draws_do_not_depend_on_earlier_draws(backend):
    addresses = [rng.stream(1, "dropout", batch=batch) for batch in range(5)]
    forwards = [uniforms(backend, address).tobytes() for address in addresses]
    backwards = [uniforms(backend, address).tobytes() for address in reversed(addresses)]
    assert forwards == backwards[::-1]


def test_the_global_generator_is_left_alone(backend):
    np.random.seed(3)
    expected = np.random.random(4).tolist()
    np.random.seed(3)
    uniforms(backend, rng.stream(1, "dropout"))
    Network(3, [Dropout(0.5), Dense(2)], backend=backend).forward(np.ones((2, 3)))
    assert np.random.random(4).tolist() == expected


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_uniforms_are_uniform(seed, backend):
    count = 100_000
    drawn = uniforms(backend, rng.stream(seed, "dropout", batch=9), (count,)).astype("float64")
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert abs(drawn.mean() - 0.5) < 5 / math.sqrt(12 * count)
    assert abs(drawn.var() - 1 / 12) < 5 / math.sqrt(180 * count)
    assert stats.chisquare(np.histogram(drawn, bins=100, range=(0, 1))[0]).pvalue > 1e-4
    # Neighbours in a stream: pairs fill the square evenly.
    pairs = np.histogram2d(drawn[::2], drawn[1::2], bins=20, range=[(0, 1), (0, 1)])[0]
    assert stats.chisquare(pairs.ravel()).pvalue > 1e-4


def test_uniforms_across_addresses_are_uniform():
    # The first draw of each batch, layer and epoch is as good as the draws of one stream.
    drawn = [
        float(uniforms(host(), rng.stream(0, "dropout", epoch=e, batch=b, layer=i), (1,))[0])
        for e, b, i in product(range(10), range(100), range(4))
    ]
    assert stats.kstest(drawn, stats.uniform.cdf).pvalue > 1e-4


# --- Seeds --------------------------------------------------------------------------------------


def test_no_seed_is_a_fresh_one():
    seeds = {rng.check_seed(None) for _ in range(20)}
    assert len(seeds) == 20
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert rng.check_seed(np.int64(3)) == 3
    assert type(rng.check_seed(np.int64(3))) is int


@pytest.mark.parametrize(("seed", "error"), [(-1, ValueError), (1.5, TypeError), (2.0, TypeError)])
def test_bad_seeds_are_named(seed, error):
    with pytest.raises(error, match=r"^seed must be a whole number >= 0, got "):
        rng.check_seed(seed)


@pytest.mark.parametrize("seed", ["1", True, math.nan, [1], np.random.default_rng(0)])
def test_what_is_no_seed_is_named(seed):
    with pytest.raises(TypeError, match=r"^seed must be a whole number"):
        Network(2, [Dense(1)], device="cpu", seed=seed)


# --- Dropout ------------------------------------------------------------------------------------

WIDTH = 250
ROWS = 80
RATES = [0.1, 0.3, 0.5, 0.9, 0.99]


def identity(
    backend: Backend, *dropouts: Dropout, dtype: str = "float64", seed: int = 0
) -> Network:
    """A network that does nothing but drop."""
    layers = [*dropouts, Dense(WIDTH, bias=False)]
    network = Network(WIDTH, layers, backend=backend, dtype=dtype, seed=seed)
    backend.copy(backend.from_host(np.eye(WIDTH, dtype=dtype)), network.weights[0])
    return network


def ones(rows: int = ROWS) -> np.ndarray:
    return np.ones((rows, WIDTH))


@each_dtype
@pytest.mark.parametrize("rate", RATES)
def test_dropout_keeps_and_scales(rate, dtype, backend):
    a = identity(backend, Dropout(rate), dtype=dtype).forward(ones())
    kept = a != 0
    # Five standard errors of a binomial proportion.
    bound = 5 * math.sqrt(rate * (1 - rate) / a.size)
    assert abs(kept.mean() - (1 - rate)) < bound
    np.testing.assert_allclose(a[kept], 1 / (1 - rate), rtol=2 * np.finfo(dtype).eps)
    assert abs(a.mean() - 1) < bound / (1 - rate)


@each_dtype
@pytest.mark.parametrize("rate", RATES)
def test_the_mask_is_a_comparison_of_addressed_uniforms(rate, dtype, backend):
    # On every backend and in both dtypes it is the mask that NumPy computes here.
    a = identity(backend, Dropout(rate), dtype=dtype, seed=4).forward(ones(), step=6)
    drawn = uniforms(host(), rng.stream(4, "dropout", batch=6, layer=0), (ROWS, WIDTH))
    assert ((a != 0) == (drawn.astype("float64") < 1 - rate)).all()


@pytest.mark.parametrize("rate", [*RATES, 0.0, 1 / 3, 2**-25, 1 - 2**-25])
def test_the_threshold_is_the_next_float32_uniform(rate):
    # The uniforms are multiples of 2**-24: those below the keep probability are exactly those
    # below the multiple that is next to it.
    stage = DropoutStage(host(), rate, 0, 0, np.ones((2, 3)), Arena(host(), 2, "float32").allocate)
    assert (stage.keep * 2**24).is_integer()
    assert 0 <= stage.keep - (1 - rate) < 2**-24
    assert float(np.float32(stage.keep)) == stage.keep


@each_dtype
def test_the_backward_pass_has_the_mask_of_the_forward_pass(dtype, backend):
    # The program that one of the documents links to leaves it out.
    network = identity(backend, Dropout(0.4), dtype=dtype)
    mask = network.forward(ones(), step=3)
    y = np.zeros((ROWS, WIDTH))
    # With squared error on a target of 0 the error term is the output itself.
    _, gradient = network.loss_and_grad(ones(), y, "squared_error", reduction="sum", step=3)
    np.testing.assert_allclose(
        backend.to_host(gradient.inputs), mask * mask, rtol=4 * np.finfo(dtype).eps
    )


def test_steps_layers_and_seeds_have_masks_of_their_own(backend):
    network = identity(backend, Dropout(0.5), Dropout(0.5))
    first = network.forward(ones()) != 0
    assert (first == (network.forward(ones()) != 0)).all()
    # Two layers with one mask would keep a half.
    assert 0.23 < first.mean() < 0.27
    others = [
        network.forward(ones(), step=1),
        identity(backend, Dropout(0.5), Dropout(0.5), seed=1).forward(ones()),
    ]
    for other in others:
        agreement = ((other != 0) == first).mean()
        assert agreement == pytest.approx(0.25**2 + 0.75**2, abs=0.02)


def test_rows_are_dropped_alike_in_smaller_batches(backend):
    network = identity(backend, Dropout(0.5))
    assert network.forward(ones(7)).tobytes() == network.forward(ones())[:7].tobytes()


def test_each_element_is_dropped_on_its_own():
    kept = identity(host(), Dropout(0.5)).forward(ones(400)) != 0
    for axis in (0, 1):
        means = kept.mean(axis=axis)
        assert np.abs(means - 0.5).max() < 5 * 0.5 / math.sqrt(kept.shape[axis])
        assert means.std() > 0.5 * 0.5 / math.sqrt(kept.shape[axis])


def test_prediction_drops_nothing(backend):
    network = identity(backend, Dropout(0.5))
    assert (network.predict(ones()) == 1).all()


def test_rate_zero_keeps_all(backend):
    x = np.random.default_rng(1).normal(size=(ROWS, WIDTH))
    assert (identity(backend, Dropout(0.0)).forward(x) == x).all()
    assert (identity(backend, Dropout(0)).forward(x) == x).all()


def test_rates_out_of_range_are_named():
    for rate in (-0.1, 1, 1.0, 1.5, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"^rate must be a number >= 0 and < 1, got "):
            Dropout(rate)
    for rate in ("0.5", None, True, [0.5]):
        with pytest.raises(TypeError, match=r"^rate must be a number"):
            Dropout(rate)


@pytest.mark.parametrize("word", ["epoch", "batch", "layer"])
@pytest.mark.parametrize("value", [-1, 2**64])
def test_a_word_that_would_reach_into_the_next_is_refused(word, value):
    with pytest.raises(ValueError, match=rf"{word} must be a whole number >= 0 and < 2\*\*64, got"):
        rng.stream(0, "a", **{word: value})
    rng.stream(0, "a", **{word: 2**64 - 1})
