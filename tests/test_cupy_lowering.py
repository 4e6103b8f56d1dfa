"""Which primitives of a step become one kernel, and which must not."""

from __future__ import annotations

import pytest

from xpmlp import rules
from xpmlp.tape import CannotCapture, StepTape

pytest.importorskip("cupy", reason="CuPy is not installed; pip install 'xpmlp[kernels]'")

from cuda_shim.adapter import EmulatedBackend
from xpmlp_cupy.fused import Group, View, to_bfloat16
from xpmlp_cupy.gather import Gather
from xpmlp_cupy.lowering import bias_behind, lowered, overwritten

BACKEND = EmulatedBackend()


@pytest.fixture
def tape():
    return StepTape(BACKEND, ("softmax_log_loss",))


def array(*shape, dtype="float32"):
    return BACKEND.zeros(shape, dtype)


def counts(tape):
    """How many rules each kernel has; primitives by themselves by their name."""
    return [len(one.rules) if isinstance(one, Group) else one.name for one in lowered(tape.calls)]


def test_rules_on_the_same_elements_are_one_kernel(tape):
    x, y, row, column = array(4, 3), array(4, 3), array(3), array(4, 1)
    tape.elementwise(rules.add)((x,), x, row)
    tape.elementwise(rules.multiply)((y,), x, column)
    tape.elementwise(rules.relu)((x,), x)
    tape.copy(x, y)
    assert counts(tape) == [4]


def test_shapes_and_layouts_that_differ_are_kernels_of_their_own(tape):
    x, long, wide = array(4, 3), array(12), array(4, 6)
    for out in (x, long, wide[:, ::2], array(4, 1), array(2, 4, 3)):
        tape.elementwise(rules.relu)((out,), out)
    assert counts(tape) == [1, 1, "elementwise", 1, 1]


def test_a_rule_waits_for_what_it_reads(tape):
    x, w, z, a = array(4, 3), array(3, 3), array(4, 3), array(4, 3)
    tape.elementwise(rules.relu)((x,), x)
    tape.matmul(x, w, z)
    tape.elementwise(rules.relu)((a,), z)
    assert counts(tape) == [1, "matmul", 1]


def test_a_rule_waits_for_those_who_read_what_it_writes(tape):
    x, w, z = array(4, 3), array(3, 3), array(4, 3)
    tape.elementwise(rules.relu)((x,), x)
    tape.matmul(x, w, z)
    tape.elementwise(rules.multiply)((x,), x, 2.0)
    assert counts(tape) == [1, "matmul", 1]


def test_a_rule_passes_what_it_has_nothing_to_do_with(tape):
    x, y, w, z = array(4, 3), array(4, 3), array(3, 3), array(4, 3)
    tape.elementwise(rules.relu)((x,), x)
    tape.matmul(x, w, z)
    tape.elementwise(rules.relu)((y,), y)
    assert counts(tape) == [2, "matmul"]


def test_an_element_that_others_need_is_written_first(tape):
    x, y = array(4, 3), array(4, 3)
    row = x.reshape(12)[:3]  # in the memory of x
    tape.elementwise(rules.relu)((x,), x)
    tape.elementwise(rules.add)((y,), y, row)
    tape.elementwise(rules.add)((x,), y, y)
    assert counts(tape) == [1, 1, 1]


def test_sums_of_columns_are_taken_where_the_array_is_written(tape):
    x, w, grad, sums = array(4, 3), array(4, 2), array(3, 2), array(3)
    tape.elementwise(rules.relu)((x,), x)
    tape.matmul(x.mT, w, grad)
    tape.sum_columns(x, sums)
    tape.elementwise(rules.relu)((x,), x)
    first, product, second = lowered(tape.calls)
    assert (first.columns[0] is x, first.columns[1] is sums) == (True, True)
    assert product.name == "matmul"
    assert len(second.rules) == 1


def test_sums_of_what_nothing_has_written_are_kernels_of_their_own(tape):
    x, sums, more = array(4, 3), array(3), array(3)
    tape.sum_columns(x, sums)
    tape.sum_columns(x, more)
    assert counts(tape) == [0, 0]


def test_what_is_done_with_a_total_is_done_by_its_kernel(tape):
    x, value, other = array(4, 3), array(dtype="float64"), array()
    tape.total(x, value)
    tape.elementwise(rules.multiply)((value,), value, 0.5)
    tape.copy(value, other)
    tape.elementwise(rules.multiply)((x,), x, other)
    total, scaled = lowered(tape.calls)
    assert (total.total[0] is x, total.total[1] is value) == (True, True)
    assert [len(total.rules), len(scaled.rules)] == [2, 1]


def test_a_rule_on_a_beginning_is_part_of_the_pass_over_the_whole(tape):
    theta, grad, slot, magnitude = array(12), array(12), array(12), array(9)
    tape.elementwise(rules.add_l2_gradient)((grad[:9],), grad[:9], theta[:9], 0.1)
    tape.elementwise(rules.multiply)((grad,), grad, 0.5)
    tape.elementwise(rules.multiply)((theta[:9],), theta[:9], 0.9)
    tape.elementwise(rules.momentum)((theta, slot), theta, grad, slot, 0.1, 0.9, 1.0)
    tape.elementwise(rules.magnitude)((magnitude,), theta[:9])  # nothing longer begins there
    update, penalty = lowered(tape.calls)
    assert [one.n_first for one in update.rules] == [9, None, 9, None]
    assert {View.of(x) for one in update.rules for x in one.outs} == {
        View.of(x) for x in (grad, theta, slot)
    }
    assert [one.n_first for one in penalty.rules] == [None]


def test_a_beginning_of_one_element(tape):
    theta, magnitude = array(2), array(1)
    tape.elementwise(rules.multiply)((theta[:1],), theta[:1], 0.9)
    tape.elementwise(rules.magnitude)((magnitude,), theta[:1])
    tape.elementwise(rules.multiply)((theta,), theta, 0.5)
    scaled, magnitudes, whole = lowered(tape.calls)
    assert [one.n_first for one in (*scaled.rules, *magnitudes.rules, *whole.rules)] == [
        1, None, None,
    ]  # fmt: skip


def test_what_a_beginning_leaves_alone_is_read(tape):
    u, v, w, out = array(4), array(4), array(2, 2), array(2, 2)
    tape.elementwise(rules.relu)((v[:3],), u[:3])
    tape.matmul(v.reshape(2, 2), w, out)
    tape.elementwise(rules.add)((v,), v, u)
    assert View.of(v) in {View.of(one) for one in overwritten(lowered(tape.calls))}


def test_a_rule_does_not_read_sums_of_columns_that_are_still_to_be_taken(tape):
    x, z, sums = array(4, 3), array(4, 3), array(3)
    tape.elementwise(rules.relu)((x,), x)
    tape.sum_columns(x, sums)
    tape.elementwise(rules.add)((z,), z, sums)
    assert counts(tape) == [1, 1]


def rounded(tape, x):
    """As a call that rounds a matrix is written down."""
    out = array(*x.shape, dtype="uint16")
    tape.calls.append(("round", (x, out)))
    return out


def test_a_matrix_is_rounded_where_it_is_written(tape):
    X, rows, x, h, w = array(9, 3), array(4, dtype="int64"), array(4, 3), array(4, 2), array(3, 2)
    tape.take_rows(X, rows, x)
    first, second = rounded(tape, x), rounded(tape, x)
    tape.matmul(x, w, h)
    tape.elementwise(rules.relu)((h,), h)
    bits = rounded(tape, h)
    wide = rounded(tape, array(4, 6)[:, ::2])
    gather, again, product, relu, strided = lowered(tape.calls)
    assert gather.rounded == {0: first}
    assert (again.rules[0].rule, again.outs) == (to_bfloat16, [second])
    assert product.name == "matmul"
    assert ([one.rule for one in relu.rules], relu.outs) == ([rules.relu, to_bfloat16], [h, bits])
    assert (strided.name, strided.outs) == ("round", [wide])


def test_a_matrix_is_not_rounded_before_a_part_of_it_is_written(tape):
    X, rows, x, part = array(9, 3), array(4, dtype="int64"), array(4, 3), array(2, 3)
    tape.take_rows(X, rows, x)
    tape.copy(part, x[:2, :])
    bits = rounded(tape, x)
    gather, copied, rounding = lowered(tape.calls)
    assert (gather.rounded, len(copied.rules)) == ({}, 1)
    assert rounding.outs == [bits]


def test_a_rule_never_takes_whole_numbers_for_bfloat16(tape):
    x, whole = array(4, 3), array(4, 3, dtype="uint16")
    tape.elementwise(rules.add)((x,), x, whole)
    tape.elementwise(rules.add)((whole,), whole, whole)
    assert counts(tape) == ["elementwise", "elementwise"]


@pytest.mark.parametrize(
    ("chosen", "found"),
    [
        ([], (False, False)),
        ([rules.relu], (True, False)),
        ([to_bfloat16], (False, True)),
        ([rules.relu, to_bfloat16], (True, True)),
        ([rules.tanh], None),
        ([rules.tanh, to_bfloat16], None),
        ([to_bfloat16, rules.relu], None),
    ],
)
def test_a_product_adds_a_bias_before_what_is_rounded(tape, chosen, found):
    x, w, z, bias = array(4, 3), array(3, 2), array(4, 2), array(2)
    tape.matmul(x, w, z)
    tape.elementwise(rules.add)((z,), z, bias)
    for rule in chosen:
        rounded(tape, z) if rule is to_bfloat16 else tape.elementwise(rule)((z,), z)
    product, *behind = lowered(tape.calls)
    assert len(behind) == 1
    ending = bias_behind(product, behind[0])
    if found is None:
        assert ending is None
    else:
        assert ending[0] is bias
        assert (ending[1], ending[2] is not None) == found


def test_rows_of_one_batch_are_gathered_together(tape):
    X, y, rows, other = array(9, 3), array(9, 1), array(4, dtype="int64"), array(4, dtype="int64")
    x, target = array(4, 3), array(4, 1)
    tape.take_rows(X, rows, x)
    tape.take_rows(y, rows, target)
    tape.take_rows(y, other, target)
    tape.take_rows(X[:, ::2], rows, array(4, 2))
    both, one, strided = lowered(tape.calls)
    assert isinstance(both, Gather)
    assert [len(both.pairs), len(one.pairs)] == [2, 1]
    assert strided.name == "take_rows"


def test_what_no_kernel_can_be_made_of_is_refused(tape):
    x = array(3)
    tape.elementwise(lambda xp, x: x**2)((x,), x)
    with pytest.raises(CannotCapture, match="unsupported operand"):
        lowered(tape.calls)


def test_the_state_is_what_is_read_before_it_is_written(tape):
    x, w, z, grad, moment = array(4, 3), array(3, 3), array(4, 3), array(3, 3), array(3, 3)
    tape.matmul(x, w, z)
    tape.elementwise(rules.relu)((z,), z)
    tape.matmul(x.mT, z, grad)
    tape.elementwise(rules.momentum)((w, moment), w, grad, moment, 0.1, 0.9, 1.0)
    state = {View.of(one) for one in overwritten(lowered(tape.calls))}
    assert state == {View.of(w), View.of(moment)}
