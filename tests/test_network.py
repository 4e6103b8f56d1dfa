"""The network's own behaviour: parameters as views, shapes, dtypes, checks at the door."""

import copy
import pickle

import numpy as np
import pytest
from conftest import BACKENDS
from optional import optional

from xpmlp import Dense, DeviceFallbackWarning, Dropout, Network
from xpmlp.activations import ELU

sparse = optional("scipy.sparse")

X = np.linspace(-1.0, 1.0, 15).reshape(5, 3)


def make(backend, layers=None, **options):
    layers = layers or [Dense(4, "tanh"), Dense(2)]
    return Network(3, layers, backend=backend, **options)


def test_parameters_are_one_vector_and_the_rest_are_live_views_of_it(backend):
    network = make(backend, [Dense(4, "tanh", bias=False), Dropout(0.5), Dense(2)])
    assert network.parameters.shape == (3 * 4 + 4 * 2 + 2,)
    assert [w.shape for w in network.weights] == [(3, 4), (4, 2)]
    assert network.biases[0] is None
    network.parameters[0] = 7.0
    network.biases[1][1] = 8.0
    assert float(backend.to_host(network.weights[0])[0, 0]) == 7.0
    assert float(backend.to_host(network.parameters)[-1]) == 8.0
    before = network.forward(X)
    network.weights[1][...] = network.weights[1] * 2.0
    assert not np.allclose(network.forward(X), before)


def test_assigning_copies_into_the_vector_or_is_refused(backend):
    network = make(backend)
    network.parameters = np.arange(network.n_parameters)
    assert float(backend.to_host(network.weights[0])[0, 1]) == 1.0
    network.parameters = backend.zeros((network.n_parameters,), "float64")
    assert (network.predict(X) == 0.0).all()
    with pytest.raises(ValueError, match=r"parameters must have shape \(26,\), got \(5,\)"):
        network.parameters = np.zeros(5)
    with pytest.raises(ValueError, match="parameters contains NaN"):
        network.parameters = np.full(26, np.nan)
    with pytest.raises(TypeError, match="assignment"):
        network.weights[0] = np.zeros((3, 4))


def test_copies_and_pickles_are_independent_and_equal():
    network = Network(3, [Dense(4, "tanh"), Dropout(0.1), Dense(2)], device="cpu", seed=4)
    network.parameters = np.arange(network.n_parameters) / 10
    for copied in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert (copied.layers, copied.seed, copied.dtype) == (network.layers, 4, "float64")
        np.testing.assert_array_equal(copied.predict(X), network.predict(X))
        copied.parameters = np.zeros(network.n_parameters)
        assert not np.array_equal(copied.predict(X), network.predict(X))


def test_a_broken_network_can_be_copied_and_pickled(backend):
    network = make(backend)
    network.parameters[0] = float("nan")
    for copied in (copy.copy(network), copy.deepcopy(network)):
        assert copied.backend is backend
        assert np.isnan(backend.to_host(copied.parameters)).sum() == 1
    on_cpu = Network(3, [Dense(1)], device="cpu")
    on_cpu.parameters[0] = float("nan")
    assert np.isnan(pickle.loads(pickle.dumps(on_cpu)).parameters[0])


def test_copies_and_pickles_keep_the_nan_where_it_was():
    network = Network(3, [Dense(4, "tanh"), Dropout(0.1), Dense(2)], device="cpu", seed=4)
    network.parameters[5], network.parameters[-1] = np.nan, np.inf
    for copied in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        np.testing.assert_array_equal(copied.parameters, network.parameters)
        assert (copied.layers, copied.seed, copied.precision) == (network.layers, 4, "ieee")


@pytest.mark.parametrize("place", BACKENDS.values(), ids=BACKENDS)
def test_a_network_moves_to_another_device(place, backend):
    layers = [Dense(4, "tanh"), Dropout(0.5), Dense(2)]
    network = make(backend, layers, dtype="float32", seed=9)
    network.parameters[2] = float("nan")
    moved = network.on(place)
    assert moved.backend is place
    assert place.owns(moved.parameters)
    assert (moved.layers, moved.dtype, moved.seed) == (network.layers, "float32", 9)
    before = backend.to_host(network.parameters).copy()
    np.testing.assert_array_equal(place.to_host(moved.parameters), before)
    moved.parameters = np.zeros(network.n_parameters)
    np.testing.assert_array_equal(backend.to_host(network.parameters), before)
    network.parameters = np.zeros(network.n_parameters)
    np.testing.assert_allclose(moved.forward(X, step=3), network.forward(X, step=3))


def test_a_pickle_opens_on_the_cpu_where_its_adapter_is_missing():
    network = Network(3, [Dense(2)], backend=BACKENDS["array-api-strict"])
    with pytest.warns(DeviceFallbackWarning, match="'array-api-strict' is not installed"):
        opened = pickle.loads(pickle.dumps(network))
    assert opened.device == "cpu"
    np.testing.assert_array_equal(opened.predict(X), network.predict(X))


def test_given_parameters_are_copied_into_the_vector(backend):
    layers = [Dense(4, "tanh"), Dropout(0.5), Dense(2)]
    drawn = make(backend, layers, seed=5)
    values = backend.to_host(drawn.parameters).copy()
    for given in (values, values.tolist(), drawn.parameters):
        network = make(backend, layers, seed=5, parameters=given)
        np.testing.assert_array_equal(network.forward(X, step=2), drawn.forward(X, step=2))
        network.biases[0][0] = 3.0
        assert float(backend.to_host(network.parameters)[20]) == 3.0
        assert values[20] == float(backend.to_host(drawn.parameters)[20]) == 0.0
    network = make(backend, layers, dtype="float32", parameters=np.arange(26))
    assert str(backend.to_host(network.parameters).dtype) == "float32"
    assert backend.to_host(network.parameters).tolist() == list(range(26))


def test_nothing_is_drawn_where_parameters_are_given(backend, monkeypatch):
    def drawn(*shape):
        raise AssertionError("weights were drawn")

    layers = [Dense(4, "tanh"), Dense(2)]
    for layer in layers:
        monkeypatch.setattr(type(layer.init), "draw", drawn)
    with pytest.raises(AssertionError, match="weights were drawn"):
        make(backend, layers)
    assert not backend.to_host(make(backend, layers, parameters=[0.0] * 26).parameters).any()


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        (np.zeros(25), ValueError, r"parameters must have shape \(26,\), got \(25,\)"),
        (np.zeros((1, 26)), ValueError, r"parameters must have shape \(26,\), got \(1, 26\)"),
        ([], ValueError, r"parameters must have shape \(26,\), got \(0,\)"),
        (0.0, ValueError, r"parameters must have shape \(26,\), got \(\)"),
        (np.full(26, np.nan), ValueError, "parameters contains NaN"),
        (np.full(26, -np.inf), ValueError, "parameters contains infinity"),
        (np.full(26, 1e39), ValueError, "parameters contains a value too large for float32"),
        (np.zeros(26, complex), TypeError, "parameters must hold real numbers"),
        (["a"] * 26, TypeError, "parameters must hold real numbers"),
        (sparse.csr_array((1, 26)), TypeError, "parameters must be a dense array, got sparse"),
    ],
)
def test_bad_parameters_are_named(backend, parameters, error, message):
    with pytest.raises(error, match=message):
        make(backend, dtype="float32", parameters=parameters)


class Hasty(type(BACKENDS["numpy"])):
    precisions = ("ieee", "fast")


def test_a_precision_is_one_of_those_of_the_adapter(backend):
    assert make(backend).precision == make(backend, precision="ieee").precision == "ieee"
    known = ", ".join(map(repr, backend.precisions))
    for unknown in ("fast", "IEEE", "", 3):
        with pytest.raises(
            ValueError, match=f"^precision must be one of {known} on .*, got {unknown!r}"
        ):
            make(backend, precision=unknown)
    hasty = make(Hasty(), precision="fast")
    assert hasty.precision == "fast"
    assert copy.deepcopy(hasty).precision == "fast"
    with pytest.raises(ValueError, match=r"^precision must be one of 'ieee', 'fast' on "):
        make(Hasty(), precision="slow")


def test_weights_come_first_then_biases(backend):
    network = make(backend)
    network.weights[0][...] = network.weights[0] * 0.0 + 1.0
    network.biases[0][...] = network.biases[0] * 0.0 + 3.0
    flat = backend.to_host(network.parameters)
    assert (flat[:12] == 1.0).all()
    assert (flat[20:24] == 3.0).all()
    assert network.n_weights == 20


def test_output_is_that_of_the_formula(backend):
    network = make(backend)
    w = [backend.to_host(x) for x in network.weights]
    hidden = np.tanh(X @ w[0])
    np.testing.assert_allclose(network.predict(X), hidden @ w[1], rtol=1e-14, atol=1e-15)
    traced = network.trace(X)
    np.testing.assert_allclose(backend.to_host(traced[0].z), X @ w[0], rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(backend.to_host(traced[0].a), hidden, rtol=1e-13, atol=1e-15)
    assert traced[1].layer.units == 2


def test_predict_is_the_same_in_blocks(backend, monkeypatch):
    network = make(backend)
    rows = np.random.default_rng(0).standard_normal((333, 3))
    whole = network.predict(rows)
    monkeypatch.setattr("xpmlp.network._PREDICT_ELEMENTS", 256)
    np.testing.assert_allclose(network.predict(rows), whole, rtol=1e-13)


def test_dropout_acts_in_forward_but_not_in_predict(backend):
    network = make(backend, [Dense(50, "relu"), Dropout(0.5), Dense(1)])
    assert np.array_equal(network.forward(X, step=3), network.forward(X, step=3))
    assert not np.allclose(network.forward(X, step=3), network.forward(X, step=4))
    assert not np.allclose(network.forward(X), network.predict(X))
    many = np.mean([network.forward(X, step=step) for step in range(400)], axis=0)
    np.testing.assert_allclose(many, network.predict(X), atol=0.15)


def test_results_live_where_the_input_lived(backend):
    network = make(backend)
    assert isinstance(network.predict(X), np.ndarray)
    assert isinstance(network.predict(X.tolist()), np.ndarray)
    assert backend.owns(network.predict(backend.from_host(X)))
    assert backend.owns(network.loss_and_grad(X, X[:, :2], "squared_error")[1].flat)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("given", ["float32", "float64", "int8", "uint8", "bool", "int64", ">f4"])
def test_any_real_dtype_is_computed_in_the_dtype_of_the_network(backend, dtype, given):
    network = make(backend, dtype=dtype)
    array = (np.abs(X) > 0.5).astype(given)
    assert str(network.predict(array).dtype) == dtype
    np.testing.assert_array_equal(network.predict(array), network.predict(array.astype(dtype)))


def test_layouts_of_the_input_do_not_matter(backend):
    network = make(backend)
    expected = network.predict(X)
    read_only = X.copy()
    read_only.flags.writeable = False
    for same in (np.asfortranarray(X), np.repeat(X, 2, axis=0)[::2], X[::-1][::-1], read_only):
        np.testing.assert_allclose(network.predict(same), expected, rtol=1e-14)


def test_bias_gradients_of_many_rows_are_accurate(backend):
    network = Network(1, [Dense(4)], backend=backend, dtype="float32")
    network.parameters = np.zeros(8)
    rows = 200_000
    ones = np.ones((rows, 1), "float32")
    gradient = network.loss_and_grad(ones, -np.ones((rows, 4), "float32"), "squared_error")[1]
    np.testing.assert_allclose(backend.to_host(gradient.biases[0]), 1.0, rtol=1e-2)
    if backend.name == "numpy":
        np.testing.assert_allclose(gradient.biases[0], 1.0, rtol=2e-4)


class Columns:
    """A table of columns of several kinds, as pandas hands it out."""

    def to_numpy(self):
        return np.array([[1.5, True, 3]] * 5, dtype=object)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ([["1", "2", "3"]], TypeError, "X must hold real numbers, got '1'"),
        ([[1.0, None, 3.0]], TypeError, "X must hold real numbers, got None"),
        ([[1.0, float("nan"), True]], ValueError, "X contains NaN"),
    ],
)
def test_tables_with_text_or_gaps_are_refused(values, error, message):
    class Table:
        def __init__(self):
            self.filled = self.toarray = "columns of these names"

        def to_numpy(self):
            return np.array(values, dtype=object)

    with pytest.raises(error, match=message):
        Network(3, [Dense(1)], device="cpu").predict(Table())


def test_arrays_of_another_library_in_host_memory_are_taken():
    array_api_strict = pytest.importorskip("array_api_strict")
    network = Network(3, [Dense(2)], device="cpu")
    np.testing.assert_array_equal(network.predict(array_api_strict.asarray(X)), network.predict(X))


def test_tables_of_several_kinds_of_numbers_are_taken(backend):
    network = make(backend)
    expected = network.predict(np.array([[1.5, 1.0, 3.0]] * 5))
    np.testing.assert_array_equal(network.predict(Columns()), expected)


def test_numbers_of_numpy_are_numbers():
    assert Dense(np.int64(4), bias=np.True_) == Dense(4)
    assert Dropout(np.float64(0.5)) == Dropout(0.5)
    wide = Network(3, [Dense(np.uint8(200)), Dense(np.uint8(200))], device="cpu")
    assert wide.n_parameters == 600 + 40000 + 400


def test_gradients_of_two_calls_do_not_share_memory(backend):
    network = make(backend)
    first = network.loss_and_grad(X, X[:, :2], "squared_error")[1]
    kept = backend.to_host(first.flat).copy()
    network.loss_and_grad(X, -X[:, :2], "squared_error")
    np.testing.assert_array_equal(backend.to_host(first.flat), kept)
    assert first.biases[0].shape == (4,)


def test_same_seed_same_network(backend):
    np.testing.assert_array_equal(
        make(backend, seed=5).predict(X), make(backend, seed=5).predict(X)
    )
    assert not np.array_equal(make(backend, seed=5).predict(X), make(backend, seed=6).predict(X))
    assert make(backend, seed=None).seed != make(backend, seed=None).seed


def test_summary_lists_layers_shapes_and_bytes(backend):
    text = make(backend, [Dense(4, ELU(0.5)), Dropout(0.25), Dense(2, bias=False)]).summary()
    assert "Dense(4, elu)" in text
    assert "Dropout(0.25)" in text
    lines = {line.split("  ")[0]: line.split() for line in text.splitlines()}
    assert lines["total"] == ["total", "24", "192"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_features": 0}, ValueError, "n_features must be a whole number >= 1, got 0"),
        ({"n_features": 2.5}, TypeError, "n_features must be a whole number >= 1, got 2.5"),
        ({"layers": []}, ValueError, "layers must end with a Dense layer"),
        ({"layers": [Dense(2), Dropout(0.1)]}, ValueError, "layers must end with a Dense"),
        ({"layers": [Dense(2), 3]}, TypeError, r"layers\[1\] must be Dense or Dropout, got 3"),
        ({"layers": 3}, TypeError, "layers must be a sequence"),
        ({"dtype": "float16"}, ValueError, "dtype must be one of 'float32', 'float64'"),
        ({"seed": -1}, ValueError, "seed must be a whole number >= 0, got -1"),
        ({"seed": 1.5}, TypeError, "seed must be a whole number"),
        ({"device": "gpu"}, ValueError, "device='gpu'"),
        ({"backend": 5}, TypeError, "backend must be a name, an adapter or None, got 5"),
        ({"device": 0}, TypeError, "device must be a string"),
        ({"backend": "nump"}, ValueError, "Did you mean 'numpy'"),
    ],
)
def test_bad_arguments_of_a_network(arguments, error, message):
    with pytest.raises(error, match=message):
        Network(**{"n_features": 3, "layers": [Dense(1)], **arguments})


@pytest.mark.parametrize(
    ("make_layer", "error", "message"),
    [
        (lambda: Dense(0), ValueError, "units must be a whole number >= 1, got 0"),
        (lambda: Dense(2.5), TypeError, "units must be a whole number"),
        (lambda: Dense(10**400), ValueError, "units must be a whole number"),
        (lambda: Dense(True), TypeError, "units must be a whole number"),
        (
            lambda: Dense(2, "rellu"),
            ValueError,
            "activation='rellu' is not known. Did you mean 'relu'",
        ),
        (lambda: Dense(2, 5), TypeError, "activation must be a name or an instance of Activation"),
        (lambda: Dense(2, init="he_unifrm"), ValueError, "Did you mean 'he_uniform'"),
        (lambda: Dense(2, bias=np.array([True])), TypeError, "bias must be True or False"),
        (lambda: Dense(2, bias="yes"), TypeError, "bias must be True or False"),
        (lambda: Dense(1, "softmax"), ValueError, "softmax needs at least 2 units, got units=1"),
        (lambda: Dropout(1.0), ValueError, "rate must be a number >= 0 and < 1, got 1.0"),
        (lambda: Dropout(-0.1), ValueError, "rate must be"),
        (lambda: Dropout("0.5"), TypeError, "rate must be a number"),
        (lambda: Dropout(float("nan")), ValueError, "rate must be"),
    ],
)
def test_bad_arguments_of_a_layer(make_layer, error, message):
    with pytest.raises(error, match=message):
        make_layer()


BAD_X = [
    (
        np.empty((0, 3)),
        ValueError,
        r"X must have at least one row and one column, got shape \(0, 3\)",
    ),
    (np.empty((3, 0)), ValueError, "X must have at least one row and one column"),
    (np.ones((5, 4)), ValueError, r"X must have 3 columns.*got shape \(5, 4\)"),
    (np.ones(3), ValueError, r"X must be 2-D.*got shape \(3,\); reshape"),
    (np.ones((2, 3, 1)), ValueError, "X must be 2-D"),
    (np.float64(3), ValueError, "X must be 2-D"),
    (np.full((2, 3), np.nan), ValueError, "X contains NaN"),
    (np.full((2, 3), -np.inf), ValueError, "X contains infinity, expected finite numbers"),
    (np.full((2, 3), np.inf, "float32"), ValueError, "X contains infinity"),
    (np.full((2, 3), np.nan, "float32"), ValueError, "X contains NaN"),
    (np.ma.array(np.ones((2, 3)), mask=True), TypeError, "X must be a plain array"),
    (np.ones((2, 3), dtype=complex), TypeError, "X must hold real numbers, got dtype complex128"),
    (np.array([["a", "b", "c"]]), TypeError, "X must hold real numbers"),
    (np.array([[1, 2, None]]), TypeError, "X must hold real numbers, got dtype object"),
    ([[1.0, 2.0, 3.0], [1.0]], TypeError, "X must be an array of real numbers, got list"),
    ("text", TypeError, "X must hold real numbers"),
    (None, TypeError, "X must hold real numbers"),
]


@pytest.mark.parametrize(("bad", "error", "message"), BAD_X)
def test_bad_x(backend, bad, error, message):
    network = make(backend)
    kept = backend.to_host(network.parameters).copy()
    calls = (
        lambda: network.predict(bad),
        lambda: network.forward(bad),
        lambda: network.trace(bad),
        lambda: network.loss_and_grad(bad, np.ones((2, 2)), "squared_error"),
    )
    for call in calls:
        with pytest.raises(error, match=message):
            call()
    np.testing.assert_array_equal(backend.to_host(network.parameters), kept)


def test_overflowing_x_is_refused(backend):
    with pytest.raises(ValueError, match="X contains a value too large for float32"):
        make(backend, dtype="float32").predict(X * 1e300)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"loss": "squared_eror"}, ValueError, "Did you mean 'squared_error'"),
        ({"loss": 3}, TypeError, "loss must be a name or an instance of Loss"),
        ({"alpha": -1}, ValueError, "alpha must be a number >= 0, got -1"),
        ({"alpha": "1"}, TypeError, "alpha must be a number"),
        ({"l1": float("inf")}, ValueError, "l1 must be a number"),
        ({"reduction": "avg"}, ValueError, "reduction must be 'mean' or 'sum', got 'avg'"),
        ({"step": -1}, ValueError, "step must be"),
        ({"sample_weight": np.ones(4)}, ValueError, r"sample_weight must have shape \(5,\)"),
        ({"sample_weight": -np.ones(5)}, ValueError, "sample_weight must be >= 0"),
        ({"sample_weight": np.zeros(5)}, ValueError, "sample_weight must be >= 0 and not all zero"),
        ({"sample_weight": np.full(5, 1.5e308)}, ValueError, "positive finite sum in float64"),
        ({"sample_weight": np.full(5, np.nan)}, ValueError, "sample_weight contains NaN"),
        (
            {"y": np.ones((4, 2))},
            ValueError,
            r"y must have as many rows as X, 5, got shape \(4, 2\)",
        ),
        ({"y": np.ones(5)}, ValueError, r"y for the loss squared_error and 2 output\(s\)"),
        ({"y": np.full((5, 2), np.inf)}, ValueError, "y contains infinity"),
        ({"y": np.array([["a", "b"]] * 5)}, TypeError, "y must hold real numbers"),
    ],
)
def test_bad_arguments_of_loss_and_grad(backend, options, error, message):
    arguments = {"X": X, "y": X[:, :2], "loss": "squared_error", **options}
    with pytest.raises(error, match=message):
        make(backend).loss_and_grad(**arguments)


# --- Sparse inputs ------------------------------------------------------------------------------

FORMATS = [
    getattr(sparse, f"{form}_{kind}")
    for form in ("csr", "csc", "coo", "lil", "dok", "bsr", "dia")
    for kind in ("array", "matrix")
]
each_format = pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.__name__)


def mostly_zeros(n=21, d=3, dtype="float64"):
    """An array with a row and values that are zero, and whole numbers where they fit `dtype`."""
    draw = np.random.default_rng(7)
    values = draw.standard_normal((n, d)) * 4
    values[draw.uniform(size=(n, d)) < 0.6] = 0.0
    values[3] = 0.0
    return (np.abs(values) if dtype in ("uint8", "bool") else values).astype(dtype)


def assert_same_bits(backend, got, expected):
    on_host = isinstance(got, np.ndarray)
    assert isinstance(expected, np.ndarray) is on_host
    bits = [(x if on_host else backend.to_host(x)).tobytes() for x in (got, expected)]
    assert bits[0] == bits[1]


@each_format
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sparse_x_equals_its_dense_form_to_the_bit(backend, form, dtype):
    dense = mostly_zeros()
    given, y = form(dense), dense[:, :2]
    network = make(backend, [Dense(4, "tanh"), Dropout(0.5), Dense(2)], dtype=dtype)
    assert isinstance(network.predict(given), np.ndarray)
    assert_same_bits(backend, network.predict(given), network.predict(dense))
    assert_same_bits(backend, network.forward(given, step=3), network.forward(dense, step=3))
    for one, other in zip(network.trace(given), network.trace(dense), strict=True):
        assert_same_bits(backend, one.z, other.z)
        assert_same_bits(backend, one.a, other.a)
    options = {"alpha": 0.1, "sample_weight": np.arange(21.0), "step": 2}
    value, gradient = network.loss_and_grad(given, y, "huber", **options)
    expected, dense_gradient = network.loss_and_grad(dense, y, "huber", **options)
    assert value == expected
    assert_same_bits(backend, gradient.flat, dense_gradient.flat)
    assert_same_bits(backend, gradient.inputs, dense_gradient.inputs)


@pytest.mark.parametrize("form", [sparse.csr_array, sparse.csc_matrix])
@pytest.mark.parametrize("given", ["float32", "int8", "uint8", "bool", "int64"])
def test_sparse_x_may_hold_any_real_dtype(backend, given, form):
    dense = mostly_zeros(dtype=given)
    network = make(backend, dtype="float32")
    assert_same_bits(backend, network.predict(form(dense)), network.predict(dense))


def test_sparse_x_is_predicted_in_blocks(backend, monkeypatch):
    monkeypatch.setattr("xpmlp.network._PREDICT_ELEMENTS", 256)
    dense, network = mostly_zeros(200), make(backend)
    for form in (sparse.csr_array, sparse.csc_array):
        assert_same_bits(backend, network.predict(form(dense)), network.predict(dense))


def test_sparse_x_may_be_a_slice_of_zeros_or_hold_entries_twice(backend):
    dense, network = mostly_zeros(), make(backend)
    zeros = np.zeros((5, 3))
    twice = sparse.coo_array(([1.0, 2.0, 4.0], ([0, 0, 4], [1, 1, 2])), shape=(5, 3))
    unsorted = sparse.csr_array((np.array([5.0, 3.0]), [2, 0], [0, 2]), shape=(1, 3))
    for given, same in (
        (sparse.csr_array(zeros), zeros),
        (sparse.csr_array(dense)[4:9], dense[4:9]),
        (sparse.csr_matrix(dense)[::-2], dense[::-2]),
        (twice, twice.toarray()),
        (unsorted, np.array([[3.0, 0.0, 5.0]])),
    ):
        assert_same_bits(backend, network.predict(given), network.predict(same))
    assert unsorted.indices.tolist() == [2, 0]
    assert twice.nnz == 3


def with_value(value, dtype="float64"):
    dense = mostly_zeros(4).astype(dtype)
    dense[1, 1] = value
    return dense


BAD_SPARSE_X = {
    "NaN": (with_value(np.nan), ValueError, "X contains NaN"),
    "infinity": (with_value(-np.inf), ValueError, "X contains infinity"),
    "too large": (with_value(1e39), ValueError, "X contains a value too large for float32"),
    "too wide": (np.ones((4, 5)), ValueError, r"X must have 3 columns.*got shape \(4, 5\)"),
    "too narrow": (np.ones((4, 2)), ValueError, r"X must have 3 columns.*got shape \(4, 2\)"),
    "no rows": (np.ones((0, 3)), ValueError, "X must have at least one row and one column"),
    "no columns": (np.ones((4, 0)), ValueError, "X must have at least one row and one column"),
    "complex": (with_value(1j, complex), TypeError, "X must hold real numbers, got dtype complex"),
}


@pytest.mark.parametrize(("dense", "error", "message"), BAD_SPARSE_X.values(), ids=BAD_SPARSE_X)
@pytest.mark.parametrize("form", FORMATS[:6], ids=lambda form: form.__name__)
def test_bad_sparse_x(backend, form, dense, error, message):
    network, given = make(backend, dtype="float32"), form(dense)
    calls = (
        lambda: network.predict(given),
        lambda: network.forward(given),
        lambda: network.trace(given),
        lambda: network.loss_and_grad(given, np.ones((4, 2)), "squared_error"),
    )
    for call in calls:
        with pytest.raises(error, match=message):
            call()


def test_one_sparse_row_of_one_axis_is_refused(backend):
    with pytest.raises(ValueError, match=r"X must be 2-D.*got shape \(3,\); reshape"):
        make(backend).predict(sparse.coo_array(np.ones(3)))


def test_targets_and_weights_stay_dense(backend):
    network, y = make(backend), np.ones((5, 2))
    with pytest.raises(TypeError, match=r"^y must be a dense array, got sparse csr_array"):
        network.loss_and_grad(X, sparse.csr_array(y), "squared_error")
    with pytest.raises(TypeError, match=r"^sample_weight must be a dense array, got sparse"):
        network.loss_and_grad(
            X, y, "squared_error", sample_weight=sparse.csr_matrix(np.ones((1, 5)))
        )
