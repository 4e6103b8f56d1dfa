"""The comparison of runs finds the faults that are planted, and says where they are."""

import json
import re
from dataclasses import dataclass

import numpy as np
import pytest
from conftest import BACKENDS
from optional import optional

from xpmlp import BackendUnavailableError, Dense, Network, get_backend, rules, testing
from xpmlp.activations import ACTIVATIONS, Activation
from xpmlp.adapter_checks import PRIMITIVES
from xpmlp.backends import Backend, ReferenceBackend, backend_class
from xpmlp.conformance import BackendTests
from xpmlp.layers import Dropout
from xpmlp.losses import LOSSES, Loss
from xpmlp.optimizers import OPTIMIZERS
from xpmlp.testing import (
    check_backend,
    check_gradients,
    participants,
    round_to_bfloat16,
    strict_backend,
)
from xpmlp.verify import Comparison, own_faults, trace, verify
from xpmlp.verify_cases import cases

Numpy = type(get_backend("cpu", "numpy"))


# --- Six faulty adapters ------------------------------------------------------------------------


class WrongDerivative(Numpy):
    def elementwise(self, rule):
        return super().elementwise(rules.relu_backward if rule is rules.tanh_backward else rule)


class TransposedWeightGradient(Numpy):
    def matmul(self, a, b, out):
        super().matmul(a, b, out)
        if a.flags.f_contiguous and not a.flags.c_contiguous:  # A^T D
            out[...] = out.T.copy().reshape(out.shape)


class MaskForgottenBackwards(Numpy):
    calls = 0

    def elementwise(self, rule):
        if rule is not rules.dropout:
            return super().elementwise(rule)
        self.calls += 1
        if self.calls % 2:
            return super().elementwise(rule)
        return lambda outs, x, u, keep, scale: outs[0].__setitem__(..., x)


class NarrowSums(Numpy):
    def total(self, x, out):
        out[...] = np.cumsum(x, dtype="float32")[-1]


class TransferInsideTheStep(Numpy):
    def matmul(self, a, b, out):
        super().matmul(self.from_host(self.to_host(a)), b, out)


class NextStream(Numpy):
    def fill_uniform(self, out, stream):
        super().fill_uniform(out, stream._replace(counter=stream.counter + 1))


class WrongLoss(Numpy):
    def total(self, x, out):
        super().total(x, out)
        out *= 1.01 if x.ndim == 2 and x.shape[1] > 1 else 1.0


class LateRestlessness(Numpy):
    """Adds up in another order each time, from the third epoch on."""

    epoch = calls = 0

    def fill_uniform(self, out, stream):
        self.epoch = stream.counter >> 192
        super().fill_uniform(out, stream)

    def sum_columns(self, x, out):
        self.calls += 1
        super().sum_columns(np.roll(x, self.calls, axis=0) if self.epoch >= 2 else x, out)


class ReadInsideTheStep(Numpy):
    def sum_columns(self, x, out):
        super().sum_columns(x, out)
        self.read(out[0])


class Broken(Numpy):
    def sum_columns(self, x, out):
        raise RuntimeError("out of beads")


class CapturedStepsDoNothing(Numpy):
    def recordable(self):
        return type(self)("cpu")

    def capture(self, step, n, n_steps, work):
        return lambda n, epoch, batch: n


PLANTED = [
    (CapturedStepsDoNothing, "the losses of captured steps"),
    (WrongLoss, r"total of \(7, 3\)|step 1, loss"),
    (LateRestlessness, "not the same twice, step 9"),
    (ReadInsideTheStep, r"transfers inside steps \(read\)"),
    (Broken, "RuntimeError: out of beads"),
    (WrongDerivative, r"step 1, layers\[2\] Dense\(7, tanh\): error term"),
    (TransposedWeightGradient, "step 1, layers.*gradient of the weights"),
    (MaskForgottenBackwards, "step 1, layers.*: error term"),
    (NarrowSums, r"total of \(300001,\) accumulated in float64: got"),
    (TransferInsideTheStep, r"transfers inside steps \(from_host, to_host\)"),
    (NextStream, r"fill_uniform of \(1, 1\)"),
]


@pytest.mark.parametrize(("faulty", "where"), PLANTED, ids=lambda x: getattr(x, "__name__", ""))
def test_a_planted_fault_is_found_and_located(faulty, where, monkeypatch):
    monkeypatch.setattr("xpmlp_numpy.THRESHOLD", 10**9)  # compiling takes a while
    right = lambda backend: {} if type(backend) is Numpy else check_backend(backend)  # noqa: E731
    monkeypatch.setattr("xpmlp.verify.check_backend", right)
    report = verify({"good": Numpy("cpu"), "faulty": faulty("cpu")}, steps=10, dtypes=["float64"])
    found = [fault for fault in report.faults if re.search(where, fault)]
    assert found, report.faults
    assert f"FAULT  {found[0]}" in str(report)


# --- Faults of single primitives ----------------------------------------------------------------


def planted(**methods):
    """An adapter whose primitives are put right by NumPy's and then wrong by `methods`."""
    faulty = type("Faulty", (Numpy,), {})
    for name, spoil in methods.items():

        def wrong(self, *arguments, name=name, spoil=spoil):
            result = getattr(Numpy, name)(self, *arguments)
            return spoil(result, *arguments)

        setattr(faulty, name, wrong)
    return faulty("cpu")


def of_rule(wrong_rule, spoil):
    """What spoils the results of one rule."""

    def elementwise(kernel, rule):
        def spoilt(outs, *operands):
            before = [np.copy(x) for x in operands]
            kernel(outs, *operands)
            spoil(outs, *before)

        return spoilt if rule is wrong_rule else kernel

    return {"elementwise": elementwise}


def spoil_large(_, *arguments):
    arguments[-1].reshape(-1)[5000:] = 0


def roll_narrow(outs, label, *others):
    if label.shape != outs[0].shape:
        outs[0][...] = np.roll(outs[0], 1)


def unclip_long(outs, g, limit):
    if g.ndim == 1 and g.size > 100:
        outs[0][...] = g


def by_memory_order(_, x, rows, out):
    if x.ndim == 2 and not x.flags.c_contiguous:
        out[...] = x.ravel(order="K").reshape(x.shape)[rows]


def uniform_large(_, out, stream):
    out.reshape(-1)[5000:] = 0.25


def hide_nan(_, logits, y, elements, d, columns):
    Numpy.softmax_log_loss(Numpy("cpu"), np.nan_to_num(logits), y, elements, d, columns)


def many_classes(_, logits, y, elements, d, columns):
    d *= 1.01 if logits.shape[1] > 100 else 1.0


def long_sums(_, a, b, out):
    out *= 1.01 if a.shape[-1] > 64 else 1.0


def with_gaps(_, a, b, out):
    if a.ndim == 2 and not (a.flags.c_contiguous or a.flags.f_contiguous):
        out[...] = 0


def not_by_rows(_, x, out):
    out[...] = 0 if x.ndim == 2 and not x.flags.c_contiguous else out


def second_result_late(rule):
    def kernel(outs, *operands):
        for place, out in enumerate(outs):  # an operand may be overwritten by then
            results = rule(Numpy("cpu").functions, *operands)
            out[...] = results[place] if isinstance(results, tuple) else results

    return kernel


SPOILT = {
    "the rule add of operands": of_rule(rules.add, roll_narrow),
    "the rule one_hot of operands": of_rule(rules.one_hot, roll_narrow),
    "the rule clip of arrays": of_rule(rules.clip, unclip_long),
    "into its operands": {"elementwise": lambda kernel, rule: second_result_late(rule)},
    r"take_rows of \(5, 3\) from uint8 by columns": {"take_rows": by_memory_order},
    r"take_rows of \(700, 300\)": {"take_rows": spoil_large},
    r"copy of \(400, 300\)": {"copy": spoil_large},
    r"fill_uniform of \(400, 300\)": {"fill_uniform": uniform_large},
    r"matmul of \(7, 200\)": {"matmul": long_sums},
    r"matmul of \(3, 5\) with gaps": {"matmul": with_gaps},
    r"softmax_log_loss of \(9, 5\)": {"softmax_log_loss": hide_nan},
    r"softmax_log_loss of \(4, 1000\)": {"softmax_log_loss": many_classes},
    r"total of .* by columns": {"total": not_by_rows},
    "finite of nan in float32: got True": {"finite": lambda result, x: True},
    r"zeros of \(\)": {"zeros": lambda result, shape, dtype: result + 1e-3},
    "total of .* accumulated in float64: got": {
        "read": lambda result, x: float(np.float32(result))
    },
}


@pytest.mark.parametrize("where", SPOILT)
def test_a_fault_of_a_primitive_is_found(where, monkeypatch):
    monkeypatch.setattr("xpmlp_numpy.THRESHOLD", 10**9)
    with pytest.raises(AssertionError, match=where):
        check_backend(planted(**SPOILT[where]))


def rounded_by(rounding, precision="bfloat16"):
    class Rounding(Numpy):
        precisions = ("ieee", precision)

        def matmul(self, a, b, out):
            if self.precision != "ieee" and a.dtype == np.float32:
                a, b = rounding(a), rounding(b)
            super().matmul(a, b, out)

    return Rounding("cpu")


def half_away(x):
    bits = (np.ascontiguousarray(x).view("uint32") + np.uint32(0x8000)) >> 16 << 16
    return np.where(np.isfinite(x), bits.view("float32"), x)


@pytest.mark.parametrize(
    ("rounding", "precision"),
    [
        (half_away, "bfloat16"),
        (lambda x: np.where(np.isnan(x), np.float32(np.inf), round_to_bfloat16(x)), "bfloat16"),
        (lambda x: round_to_bfloat16(np.clip(x, -3e38, 3e38)), "bfloat16"),
        (lambda x: 0 * x, "tf32"),
        (lambda x: np.float32(1.01) * x, "tf32"),
    ],
    ids=["ties away from zero", "NaN to infinity", "no infinity", "zeros", "too coarse"],
)
def test_wrong_roundings_are_found(rounding, precision):
    check = testing.check_products
    with Numpy("cpu").context():
        check(rounded_by(round_to_bfloat16, "bfloat16"), "float32")
        with pytest.raises(AssertionError, match=f"matmul .* in {precision}"):
            check(rounded_by(rounding, precision), "float32")


def case_of(words):
    return next(case for case in cases() if words in case.name)


def test_restlessness_of_large_products_and_signs_of_zero_are_found():
    class Restless(Numpy):
        calls = 0

        def matmul(self, a, b, out):
            self.calls += 1
            if a.shape[-1] > 64:
                a, b = np.roll(a, self.calls, -1), np.roll(b, self.calls, -2)
            super().matmul(a, b, out)

    class OtherZeros(Numpy):
        runs = 0

        def fill_uniform(self, out, stream):
            super().fill_uniform(out, stream)
            self.runs += stream.counter >> 128 == 0

        def elementwise(self, rule):
            kernel = super().elementwise(rule)

            def signed(outs, *operands):
                kernel(outs, *operands)
                if self.runs > 1:
                    outs[0][outs[0] == 0] = -0.0

            return signed if rule is rules.dropout else kernel

    for faulty, words in ((Restless("cpu"), "100-300-20"), (OtherZeros("cpu"), "100-300-20")):
        case = case_of(words)
        found = own_faults(case, faulty, trace(case, faulty, "float64", 2))
        assert any("not the same twice, step 1" in fault for fault in found), faulty


def test_what_devices_that_defer_do_is_run_everywhere():
    closed = planted(**of_rule(rules.gate, lambda outs, *_: outs[0].__setitem__(..., 0.0)))
    case = case_of("deferred")
    good, bad = (trace(case, each, "float64", 2) for each in (Numpy("cpu"), closed))
    comparison = Comparison(("good", "bad"), "float64")
    comparison.add(case, good, bad)
    assert comparison.first is not None
    assert closed.immediate is True


def test_a_run_that_is_not_repeated_is_found():
    class Restless(Numpy):
        """Adds up in another order each time."""

        calls = 0

        def sum_columns(self, x, out):
            self.calls += 1
            super().sum_columns(np.roll(x, self.calls, axis=0), out)

    report = verify({"restless": Restless("cpu")}, steps=6, dtypes=["float64"])
    assert any("not the same twice, step 1" in fault for fault in report.faults)


def test_the_adapters_of_this_machine_agree():
    report = verify(BACKENDS, steps=12)
    assert report.faults == []
    assert len(report.comparisons) == len(BACKENDS) * (len(BACKENDS) - 1)
    for found in report.comparisons:
        assert len(found.drift) == 12
        assert found.one_step < {"float64": 1e-13, "float32": 1e-5}[found.dtype]


def test_the_cases_cover_every_activation_loss_and_optimizer():
    layers = [layer for case in cases() for layer in case.layers]
    used = {type(layer.activation) for layer in layers if isinstance(layer, Dense)}
    assert used == set(ACTIVATIONS.values())
    assert {type(case.loss) for case in cases()} == set(LOSSES.values())
    assert {type(case.optimizer) for case in cases()} == set(OPTIMIZERS.values())
    assert all(any(isinstance(layer, Dropout) for layer in case.layers) for case in cases())


# What an adapter says of itself: no computation.
DESCRIPTIONS = {
    "name",
    "library",
    "immediate",
    "policies",
    "precisions",
    "functions",
    "unavailable",
    "devices",
    "version",
    "accepts",
    "memory",
    "context",
    "synchronize",
    "empty",
    "owns",
    "with_precision",
    "recordable",
}


@pytest.mark.parametrize("name", ["cupy", "numpy", "torch"])
def test_what_an_adapter_overrides_is_checked(name):
    compared = {"matmul", "elementwise", "total", "total_squares", "fill_uniform", "capture"}
    compared |= {"zeros", "from_host", "to_host", "read", "finite", *PRIMITIVES}
    primitives = {key for key in vars(Backend) if not key.startswith("_")} - DESCRIPTIONS
    assert primitives == compared
    public = {key for key in vars(backend_class(name)) if not key.startswith("_")}
    assert {"matmul", "take_rows"} <= public & compared
    assert public & set(dir(ReferenceBackend)) <= compared | DESCRIPTIONS


# --- Parts of one's own -------------------------------------------------------------------------


def cube(xp, z):
    return z * z * z


def cube_backward(xp, z, d):
    return d * (3.0 * z * z)


def cube_backward_wrong(xp, z, d):
    return d * (2.0 * z * z)


@dataclass(frozen=True)
class Cube(Activation):
    name = "cube"
    reads = "z"
    forward_rule = cube
    backward_rule = cube_backward


@dataclass(frozen=True)
class WrongCube(Cube):
    backward_rule = cube_backward_wrong


def fourth_power(xp, a, y):
    r = a - y
    return r * r * r * r, 4.0 * r * r * r


def fourth_power_wrong(xp, a, y):
    r = a - y
    return r * r * r * r, 3.0 * r * r * r


@dataclass(frozen=True)
class FourthPower(Loss):
    name = "fourth_power"
    rule = fourth_power


@dataclass(frozen=True)
class WrongFourthPower(Loss):
    name = "wrong_fourth_power"
    rule = fourth_power_wrong


@pytest.mark.parametrize("subject", [Cube(), FourthPower()], ids=lambda s: s.name)
def test_a_part_of_ones_own_passes(subject):
    assert check_gradients(subject) < 1e-5


def test_a_wrong_activation_is_found_in_its_layer():
    with pytest.raises(AssertionError, match=r"weights\[0\].* of Dense\(5, cube\)"):
        check_gradients(WrongCube())


def test_a_wrong_loss_is_found():
    with pytest.raises(AssertionError, match=r"weights\[0\]\[1, 1\] of Dense\(2, tanh\)"):
        check_gradients(WrongFourthPower())


def huber_steep_outside(xp, a, y):
    r = a - y
    near = xp.abs(r) <= 1.0
    return xp.where(near, 0.5 * r * r, xp.abs(r) - 0.5), xp.where(near, r, 7.0 * xp.sign(r))


@dataclass(frozen=True)
class SteepHuber(Loss):
    name = "steep_huber"
    rule = huber_steep_outside


def square(xp, a, y):
    r = a - y
    return r * r, 2.0 * r


def square_of_exp_wrong(xp, z, y):
    r = xp.exp(z) - y
    return r * r, 5.0 * r


@dataclass(frozen=True)
class WrongLogits(Loss):
    name = "wrong_logits"
    rule = square
    logit_rules = {"exp": square_of_exp_wrong}


def between(limit):
    def forward(xp, z):
        return xp.maximum(xp.minimum(z, limit), -limit)

    def backward(xp, z, d):
        return d  # also outside

    fields = {"forward_rule": forward, "backward_rule": backward, "reads": "z", "name": "between"}
    return dataclass(frozen=True)(type("Between", (Activation,), fields))()


@pytest.mark.parametrize("subject", [SteepHuber(), WrongLogits(), between(3.0), between(6.0)])
def test_a_derivative_that_is_wrong_in_one_branch_is_found(subject):
    with pytest.raises(AssertionError, match="the gradient of"):
        check_gradients(subject)


def steep_sigmoid_backward(xp, a, d):
    return 1.5 * (d * a * (1.0 - a))


@dataclass(frozen=True)
class SteepSigmoid(ACTIVATIONS["sigmoid"]):
    name = "steep_sigmoid"
    backward_rule = steep_sigmoid_backward


def test_a_wrong_layer_below_many_is_found(rng):
    layers = [Dense(3, SteepSigmoid()), *(Dense(3, "sigmoid") for _ in range(10)), Dense(1)]
    network = Network(2, layers, device="cpu")
    with pytest.raises(AssertionError, match="steep_sigmoid"):
        check_gradients(network, rng.standard_normal((9, 2)), rng.standard_normal((9, 1)))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_librarys_losses_pass(loss):
    assert check_gradients(loss()) < 1e-5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_network_of_ones_own_is_checked(backend, dtype, rng):
    layers = [Dense(4, "gelu"), Dropout(0.3), Dense(2)]
    network = Network(3, layers, backend=backend, dtype=dtype)
    X, y = rng.standard_normal((5, 3)), rng.standard_normal((5, 2))
    assert check_gradients(network, X, y, "huber", alpha=0.1, l1=0.01) < 1e-5


def test_a_rule_of_ones_own_is_checked(monkeypatch):
    class Strange(Numpy):
        def elementwise(self, rule):
            kernel = super().elementwise(rule)
            if rule is not cube:
                return kernel
            return lambda outs, *operands: kernel(outs, *(x + 1e-3 for x in operands))

    monkeypatch.setattr("xpmlp_numpy.THRESHOLD", 10**9)
    with pytest.raises(AssertionError, match="the rule cube"):
        check_backend(Strange("cpu"), rules=[cube])


@pytest.mark.parametrize(
    ("primitive", "fault"),
    [
        ("matmul", lambda x: x * (1.0 + 1e-5)),
        ("sum_columns", lambda x: x + 1.0),
        ("max_rows", abs),
        ("copy", lambda x: x + 1.0),
        ("take_rows", lambda x: x[::-1].copy()),
    ],
)
def test_a_wrong_primitive_is_named(primitive, fault):
    class Faulty(Numpy):
        pass

    def wrong(self, *operands):
        getattr(Numpy, primitive)(self, *operands)
        operands[-1][...] = fault(operands[-1])

    setattr(Faulty, primitive, wrong)
    with pytest.raises(AssertionError, match=primitive):
        check_backend(Faulty("cpu"))


def unshifted(self, logits, y, elements, d, columns):
    e = np.exp(logits)
    total = e.sum(axis=1, keepdims=True)
    elements[...] = y * (np.log(total) - logits)
    d[...] = y.sum(axis=1, keepdims=True) * e / total - y


def test_overflow_and_nan_are_asked_for():
    class Overflowing(Numpy):
        softmax_log_loss = unshifted

    class DroppingNaN(Numpy):
        @property
        def functions(self):
            functions = super().functions
            functions.maximum = np.fmax
            return functions

    with pytest.raises(AssertionError, match="softmax_log_loss"):
        check_backend(Overflowing("cpu"))
    with pytest.raises(AssertionError, match="the rule"):
        check_backend(DroppingNaN("cpu"))


# --- A third party's whole test file ------------------------------------------------------------


if "array-api-strict" in BACKENDS:

    class TestStrict(BackendTests):
        steps = 12

        def open(self):
            return strict_backend()


if "torch" in BACKENDS:

    class TestTorch(BackendTests):
        steps = 12

        def open(self):
            return BACKENDS["torch"]


if "cupy" in BACKENDS:

    class TestCupy(BackendTests):
        def open(self):
            return BACKENDS["cupy"]


# --- The command --------------------------------------------------------------------------------


def run(capsys, *arguments):
    cli = optional("xpmlp.cli")  # takes click
    main = cli.main
    with pytest.raises(SystemExit) as ended:
        main(["verify", *arguments])
    out, err = capsys.readouterr()
    return ended.value.code, out, err


@pytest.fixture
def without_primitives(monkeypatch):
    """Adapters' primitives are not looked at again: that takes seconds for each."""
    monkeypatch.setattr("xpmlp.verify.check_backend", lambda backend: {})


def test_the_command_prints_writes_and_draws(capsys, tmp_path):
    names = "numpy:cpu,array-api-strict"
    files = tmp_path / "verify.json", tmp_path / "drift.png"
    code, out, _ = run(
        capsys,
        "--backends",
        names,
        "--steps",
        "5",
        "--json",
        str(files[0]),
        "--plot",
        str(files[1]),
    )
    assert code == 0
    assert "numpy:cpu and array-api-strict, float64" in out
    assert "All agree" in out
    written = json.loads(files[0].read_text())
    assert written[0]["faults"] == []
    assert written[0]["growth"]["float64"] > 0
    assert len(written[0]["comparisons"][0]["drift"]) == 5
    assert files[1].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("steps", [0, 501])
def test_a_number_of_steps_out_of_bounds(capsys, steps):
    code, _, err = run(capsys, "--steps", str(steps))
    bounds = "must be a whole number >= 1 and <= 500"
    assert (code, err) == (2, f"xpmlp: error: --steps {bounds}, got {steps}\n")
    with pytest.raises(ValueError, match=f"steps {bounds}, got {steps}"):
        verify({"numpy:cpu": get_backend("cpu")}, steps=steps)


@pytest.mark.parametrize("dtypes", [(), ("float16",), "float32"])
def test_where_there_is_nothing_to_compare_nothing_is_said_to_agree(dtypes):
    with pytest.raises(ValueError, match=r"dtypes among float64, float32, got .*numpy:cpu.* and "):
        verify({"numpy:cpu": get_backend("cpu")}, dtypes=dtypes)
    with pytest.raises(ValueError, match="expected backends by name"):
        verify({})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--json", "."], "--json=. is a folder, expected a file"),
        (["--plot", "."], "--plot=. is a folder, expected a file"),
        (["--json", "d.png", "--plot", "d.png"], "must be different files, got d.png twice"),
    ],
)
def test_files_that_could_not_be_written_are_refused_at_once(capsys, options, message):
    code, out, err = run(capsys, *options)
    assert (code, out) == (2, "")
    assert message in err


class Unturned(Numpy):
    """Takes the rows of a square matrix for its columns, if they lie so."""

    def matmul(self, a, b, out):
        if b.ndim == 2 and b.shape[0] == b.shape[1] and not b.flags.c_contiguous:
            b = b.T
        super().matmul(a, b, out)


def test_a_square_matrix_that_is_turned():
    with pytest.raises(AssertionError, match=r"matmul of \(9, 9\)"):
        check_backend(Unturned("cpu"))


@pytest.mark.usefixtures("without_primitives")
def test_an_adapter_against_its_reference(capsys):
    code, out, _ = run(capsys, "--backends", "numpy:cpu", "--steps", "5", "--against", "reference")
    assert code == 0
    assert "numpy:cpu and numpy:cpu by reference, float32" in out


@pytest.mark.usefixtures("without_primitives")
def test_a_disagreement_is_exit_code_1(capsys, monkeypatch):
    faulty = {"good": Numpy("cpu"), "bad": NextStream("cpu")}
    monkeypatch.setattr("xpmlp.cli.participants", lambda: faulty)
    code, out, _ = run(capsys, "--steps", "2")
    assert code == 1
    assert "FAULT" in out


@pytest.mark.usefixtures("without_primitives")
def test_one_participant_is_nothing_to_compare(capsys, tmp_path):
    path = tmp_path / "v.json"
    code, out, _ = run(capsys, "--backends", "numpy:cpu", "--steps", "1", "--json", str(path))
    assert code == 2
    assert "All agree" not in out
    assert "Nothing was compared: there is one participant." in out
    assert json.loads(path.read_text())[0]["agree"] is False
    code, _, err = run(capsys, "--backends", "numpy:cpu", "--plot", str(tmp_path / "p.png"))
    assert code == 2
    assert "--plot needs two adapters" in err


def test_what_is_left_out_is_said_with_its_reason(capsys, monkeypatch):
    two = {"numpy:cpu": Numpy("cpu"), "other": Numpy("cpu")}
    state = {"numpy": "usable", "beads": "no beads were found"}
    monkeypatch.setattr("xpmlp.cli.participants", lambda: two)
    monkeypatch.setattr("xpmlp.cli.available_backends", lambda: state)
    monkeypatch.setattr("xpmlp.cli.compare_runs", lambda group, **_: verify(group, dtypes=()))
    monkeypatch.setattr("xpmlp.verify.check_backend", lambda backend: {})
    code, out, _ = run(capsys)
    assert code == 2  # no dtype, no comparison
    assert out.startswith("left out: beads (no beads were found)\n")


def test_the_same_adapter_twice_is_a_users_error(capsys):
    code, _, err = run(capsys, "--backends", "numpy:cpu,numpy:cpu")
    assert code == 2
    assert "--backends names 'numpy:cpu' more than once" in err


@pytest.mark.skipif("array-api-strict" not in BACKENDS, reason="array-api-strict is missing")
def test_the_reference_against_itself_is_nothing_to_compare(capsys):
    code, out, err = run(capsys, "--backends", "array-api-strict", "--against", "reference")
    assert code == 2
    assert "left out: array-api-strict (it is its library's reference path)" in out
    assert "nothing to compare" in err


def test_a_participant_that_breaks_is_not_said_to_agree():
    report = verify({"good": Numpy("cpu"), "broken": Broken("cpu")}, steps=2, dtypes=["float64"])
    assert report.comparisons[0].one_step is None
    assert re.search(r"good and broken, float64 +- +-\n", str(report))


def test_every_device_takes_part_and_none_falls_back(monkeypatch):
    class Beads(Numpy):
        name = "beads"

        @classmethod
        def devices(cls):
            return "beads:0", "beads:1"

        @classmethod
        def accepts(cls, device):
            return device.startswith("beads")

    class Unopened(Beads):
        def __init__(self, device):
            raise RuntimeError("no beads")

    from xpmlp import backends

    monkeypatch.setattr(testing, "available_backends", lambda: {"beads": "usable"})
    monkeypatch.setattr(backends, "_known", lambda: {"numpy": "", "beads": ""})
    for adapter, expected in ((Beads, {"beads:beads:0", "beads:beads:1"}), (Unopened, None)):
        chosen = lambda name, adapter=adapter: adapter if name == "beads" else Numpy  # noqa: E731
        monkeypatch.setattr(testing, "backend_class", chosen)
        monkeypatch.setattr(backends, "backend_class", chosen)
        monkeypatch.setattr(backends, "_instances", {})
        if expected:
            assert expected <= {*participants()}
        else:
            with pytest.raises(BackendUnavailableError, match="no beads"):
                participants()


def test_an_unknown_adapter_is_a_users_error(capsys):
    code, _, err = run(capsys, "--backends", "numpy:gpu")
    assert code == 2
    assert "numpy:cpu" in err
    assert "numpy:cpu" in participants()
