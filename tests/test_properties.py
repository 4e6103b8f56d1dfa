"""Any input, however odd, gives the result of its clean equivalent, or our ValueError."""

import csv
import io
import math
import warnings

import numpy as np
import pytest
from scipy import sparse

from xpmlp import Dense, MLPClassifier, MLPRegressor, Network, fit
from xpmlp.datasets import load_table
from xpmlp.optimizers import SGD

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies
npst = pytest.importorskip("hypothesis.extra.numpy")

SETTINGS = hypothesis.settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
REFUSALS = (ValueError, TypeError)


def quiet(call):
    """What a call returns, or the error it refuses with; a warning is neither."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*converge", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*clipped", category=UserWarning)
        try:
            return call()
        except REFUSALS as error:
            return error


def subject(kind):
    if kind == "network":
        return Network(3, [Dense(4, "tanh"), Dense(1)], device="cpu", seed=1)
    cls = MLPRegressor if kind == "regressor" else MLPClassifier
    return cls(hidden_layer_sizes=(4,), max_iter=2, random_state=0, batch_size=4)


def use(kind, X, y):
    """Fit and predict; the parameters and the predictions."""
    model = subject(kind)
    if kind == "network":
        fit(model, X, y, loss="squared_error", optimizer=SGD(1e-3), epochs=2, verbose=0)
        return model.parameters, model.predict(X)
    model.fit(X, y)
    return model.network_.parameters, model.predict(X)


# --- Forms of the same numbers --------------------------------------------------------------------


def strided(x):
    wide = np.zeros((2 * x.shape[0], 3 * x.shape[1]), x.dtype)
    wide[::2, ::3] = x
    return wide[::2, ::3]


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def swapped(x):
    return x.astype(x.dtype.newbyteorder("S"))


def pandas_of(x):
    return pytest.importorskip("pandas").DataFrame(x.copy(), columns=["a", "b", "c"])


def mixed_pandas(x):
    frame = pandas_of(x)
    whole = bool((x[:, 0] == np.floor(x[:, 0])).all())
    return frame.astype({"a": "int64" if whole else object, "b": object})


def polars_of(x):
    return pytest.importorskip("polars").DataFrame({name: x[:, i] for i, name in enumerate("abc")})


def unaligned(x):
    raw = np.zeros(x.nbytes + 1, "uint8")
    raw[1:] = np.frombuffer(np.ascontiguousarray(x).tobytes(), "uint8")
    return raw[1:].view(x.dtype).reshape(x.shape)


FORMS = {
    "Fortran order": np.asfortranarray,
    "strides": strided,
    "negative strides": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "read-only": read_only,
    "another byte order": swapped,
    "unaligned": unaligned,
    "a list": lambda x: x.tolist(),
    "a tuple of tuples": lambda x: tuple(map(tuple, x.tolist())),
    "objects": lambda x: x.astype(object),
    "pandas": pandas_of,
    "pandas of several dtypes": mixed_pandas,
    "polars": polars_of,
    "CSR": sparse.csr_array,
    "CSC": sparse.csc_matrix,
    "a subclass": lambda x: x.view(type("Sub", (np.ndarray,), {})),
    "a masked array without masks": np.ma.masked_array,
    "float16 that holds them": lambda x: x.astype("float16"),
    "long double": lambda x: x.astype(np.longdouble),
    "int8 that holds them": lambda x: x.astype("int8"),
}
# By a network, which takes arrays of numbers.
REFUSED = [("network", "a masked array without masks"), ("network", "objects")]
SMALL = npst.arrays(
    "float64",
    st.tuples(st.integers(2, 9), st.just(3)),
    elements=st.integers(-8, 8).map(float) | st.sampled_from([0.5, -1.25, -0.0]),
)


@pytest.mark.parametrize("kind", ["network", "regressor", "classifier"])
@pytest.mark.parametrize("form", FORMS)
@SETTINGS
@hypothesis.given(X=SMALL)
def test_the_form_of_the_numbers_does_not_matter(kind, form, X):
    if form == "int8 that holds them":
        X = np.floor(X)
    y = np.arange(len(X)) % 2
    odd = FORMS[form](X)
    got = quiet(lambda: use(kind, odd, y))
    if isinstance(got, REFUSALS):
        assert (kind, form) in REFUSED, got
        return
    # Before 2.3 NumPy has a way of its own to multiply a matrix with gaps.
    rtol = 0.0 if np.lib.NumpyVersion(np.__version__) >= "2.3.0" else 1e-12
    for value, expected in zip(got, quiet(lambda: use(kind, X, y)), strict=True):
        np.testing.assert_allclose(np.asarray(value), expected, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("kind", ["network", "regressor"])
@SETTINGS
@hypothesis.given(
    y=npst.arrays("float64", 6, elements=st.integers(-9, 9).map(float)), form=st.integers(0, 7)
)
def test_the_form_of_the_targets_does_not_matter(kind, y, form):
    X = np.arange(18.0).reshape(6, 3) / 9.0
    odd = [
        y.astype("float32"), y.astype("int64"), swapped(y), read_only(y), y.tolist(),
        np.repeat(y, 2)[::2], y[::-1].copy()[::-1], y.astype(object),
    ][form]  # fmt: skip
    got = quiet(lambda: use(kind, X, odd))
    if isinstance(got, REFUSALS):
        assert (kind, form) == ("network", 7), got
        return
    for value, expected in zip(got, quiet(lambda: use(kind, X, y)), strict=True):
        np.testing.assert_allclose(np.asarray(value), expected, rtol=1e-12, atol=1e-12)


# --- Anything at all ------------------------------------------------------------------------------

DTYPES = (
    npst.boolean_dtypes()
    | npst.integer_dtypes()
    | npst.unsigned_integer_dtypes()
    | npst.floating_dtypes()
    | npst.complex_number_dtypes()
    | npst.datetime64_dtypes()
    | npst.timedelta64_dtypes()
    | npst.byte_string_dtypes()
    | npst.unicode_string_dtypes()
    | npst.array_dtypes()
)
SHAPES = npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5) | st.tuples(
    st.integers(0, 6), st.just(3)
)
ODD_ARRAYS = DTYPES.flatmap(lambda dtype: npst.arrays(dtype, SHAPES))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(2**62, 2**70),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=3),
    st.binary(max_size=3),
)
ODD = ODD_ARRAYS | SCALARS | st.lists(st.lists(SCALARS, max_size=3), max_size=4)


def finite(values):
    return all(np.isfinite(np.asarray(value, dtype=float)).all() for value in values)


@pytest.mark.parametrize("kind", ["network", "regressor", "classifier"])
@hypothesis.settings(SETTINGS, max_examples=100)
@hypothesis.given(X=ODD, y=ODD)
def test_any_data_is_learnt_or_refused(kind, X, y):
    got = quiet(lambda: use(kind, X, y))
    if isinstance(got, tuple):
        assert finite(got[:1])
        assert kind == "classifier" or finite(got[1:])


@pytest.mark.parametrize("kind", ["network", "regressor", "classifier"])
@hypothesis.settings(SETTINGS, max_examples=80)
@hypothesis.given(X=ODD)
def test_anything_is_predicted_or_refused(kind, X):
    model = subject(kind)
    data = np.arange(18.0).reshape(6, 3)
    if kind != "network":
        model.fit(data, [0, 1, 0, 1, 0, 1])
    got = quiet(lambda: model.predict(X))
    if not isinstance(got, REFUSALS):
        assert finite([got])
        assert len(got) == len(np.asarray(X))


@pytest.mark.parametrize("kind", ["regressor", "classifier"])
@hypothesis.settings(SETTINGS, max_examples=60)
@hypothesis.given(X=ODD, y=ODD)
def test_a_refusal_leaves_the_model_as_it_was(kind, X, y):
    model = subject(kind)
    data = np.arange(18.0).reshape(6, 3) / 10.0
    model.fit(data, [0, 1, 0, 1, 0, 1])
    before = np.array(model.network_.parameters)
    got = quiet(lambda: model.partial_fit(X, y))
    if isinstance(got, REFUSALS):
        np.testing.assert_array_equal(model.network_.parameters, before)
    else:
        assert finite([model.network_.parameters])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@SETTINGS
@hypothesis.given(
    exponents=st.lists(st.integers(-1080, 1030), min_size=12, max_size=12),
    signs=st.integers(0, 4095),
)
def test_numbers_of_any_size_do_not_become_nan(dtype, exponents, signs):
    values = [math.ldexp(1.0, e) if e < 1024 else math.inf for e in exponents]
    X = np.array([-v if signs >> i & 1 else v for i, v in enumerate(values)]).reshape(4, 3)

    def work():
        network = Network(3, [Dense(4, "relu"), Dense(1)], device="cpu", dtype=dtype)
        try:
            fit(network, X, X[:, 0], loss="squared_error", epochs=2, verbose=0)
        except ArithmeticError:  # NonFiniteLossError
            return (np.zeros(1),)
        return (network.parameters,)

    got = quiet(work)
    assert isinstance(got, REFUSALS) or finite(got)


# --- CSV ------------------------------------------------------------------------------------------

CELLS = st.floats(-1e9, 1e9).map(repr) | st.integers(-999, 999).map(str)


@SETTINGS
@hypothesis.given(
    table=st.integers(1, 4).flatmap(
        lambda n: st.lists(st.lists(CELLS, min_size=n, max_size=n), min_size=1, max_size=6)
    ),
    quoted=st.booleans(),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    bom=st.booleans(),
    spaces=st.booleans(),
    blank_lines=st.booleans(),
)
def test_csv_in_all_its_forms(tmp_path_factory, table, quoted, newline, bom, spaces, blank_lines):
    path = tmp_path_factory.mktemp("csv") / "d.csv"
    names = [f"name {i}" for i in range(len(table[0]))]
    text = io.StringIO(newline="")
    quoting = csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL
    writer = csv.writer(text, lineterminator=newline, quoting=quoting)
    for row in [names, *table]:
        writer.writerow([f" {cell} " if spaces and not quoted else cell for cell in row])
        if blank_lines:
            text.write(newline)
    path.write_bytes(("\ufeff" if bom else "").encode() + text.getvalue().encode())
    read = load_table(str(path))
    assert read.columns == names
    np.testing.assert_array_equal(read.features(names), np.array(table, dtype=float))


PIECES = st.sampled_from(
    [b"1", b"2.5", b"-3e400", b"nan", b"inf", b"", b"a", b"1,5", b'"', b'""', b'"1,5"', b"\0",
     b"\n", b"\r", b"\r\n", b",", b";", b"\t", b"\xef\xbb\xbf", b"\xff", b"\xe2\x82\xac", b"1_000",
     b" "]
)  # fmt: skip


@hypothesis.settings(SETTINGS, max_examples=300)
@hypothesis.given(st.lists(PIECES, max_size=40).map(b"".join) | st.binary(max_size=80))
def test_any_bytes_are_a_table_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("csv") / "d.csv"
    path.write_bytes(content)

    def read():
        table = load_table(str(path))
        return table.features(table.columns)

    got = quiet(read)
    assert isinstance(got, REFUSALS) or (got.ndim == 2 and np.isfinite(got).all())


@hypothesis.settings(SETTINGS, max_examples=80)
@hypothesis.given(
    st.binary(max_size=200), st.sampled_from([b"", b"PK\x03\x04", b"\x93NUMPY\x01\0"])
)
def test_any_bytes_are_a_numpy_file_or_refused(tmp_path_factory, content, head):
    folder = tmp_path_factory.mktemp("npy")
    for name in ("d.npy", "d.npz"):
        (folder / name).write_bytes(head + content)
        got = quiet(lambda name=name: load_table(str(folder / name)))
        assert isinstance(got, REFUSALS) or len(got) > 0


def test_a_header_of_a_million_columns(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text(",".join(f"c{i}" for i in range(10**6)) + "\n1,2\n")
    with pytest.raises(ValueError, match="has 2 values in data row 1, expected 1000000"):
        load_table(str(path))
