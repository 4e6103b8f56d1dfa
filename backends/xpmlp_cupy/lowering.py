"""A step's primitives in as few pieces of work as their order allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from xpmlp.tape import CannotCapture
from xpmlp.tracing import trace
from xpmlp.typing import Rule
from xpmlp_cupy.fused import Applied, Group, View, index_of, is_array, may_join, same, to_bfloat16
from xpmlp_cupy.gather import Gather
from xpmlp_cupy.products import by_rows
from xpmlp_cupy.tracing import CTYPES, alike

# Arguments that a primitive writes, counted from the first.
WRITTEN = {
    "matmul": (2,), "sum_rows": (1,), "max_rows": (1,), "take_rows": (2,), "copy": (1,),
    "sum_columns": (1,), "total": (1,), "total_squares": (1,), "fill_uniform": (0,),
    "softmax_log_loss": (2, 3), "round": (1,),
}  # fmt: skip


@dataclass
class Single:
    """A primitive that is done by itself."""

    name: str
    arguments: tuple[Any, ...]

    @property
    def reads(self) -> list[View]:
        return [View.of(x) for place, x in enumerate(self.arguments)
                if is_array(x) and place not in self._written]  # fmt: skip

    @property
    def outs(self) -> list[Any]:
        return [self.arguments[place] for place in self._written]

    @property
    def _written(self) -> Sequence[int]:
        if self.name == "elementwise":  # a rule and the number of outs come first
            return range(2, 2 + self.arguments[1])
        return WRITTEN[self.name]

    @property
    def writes(self) -> list[View]:
        return [View.of(x) for x in self.outs]


Work = Group | Gather | Single


Calls = list[tuple[str, tuple[Any, ...]]]


def rounded_once(calls: Calls, zeros: Callable[[tuple[int, ...], str], Any]) -> Calls:
    """The calls with products of matrices that have been rounded to bfloat16.

    Each matrix is rounded once, for all products between two changes of it, into memory from
    `zeros`.
    """
    kept: dict[Any, Any] = {}
    result: Calls = []

    def once(rows: Any) -> Any:
        key = View.of(rows), rows.strides
        if key not in kept:
            kept[key] = zeros(rows.shape, "uint16")
            result.append(("round", (rows, kept[key])))
        return kept[key]

    for name, arguments in calls:
        if name == "matmul" and all(x.ndim == 2 and str(x.dtype) == "float32" for x in arguments):
            a, b, out = arguments
            arguments = (by_rows(a, once), by_rows(b, once), out)
        result.append((name, arguments))
        for view in Single(name, arguments).writes:
            kept = {key: value for key, value in kept.items() if not key[0].overlaps(view)}
    return result


def lowered(calls: Calls) -> list[Work]:
    """The work of a step.

    A rule joins the last pass over elements of its shape, if nothing between the two writes what it
    reads or touches what it writes. One on the beginnings of vectors, such as the weights among the
    parameters, is done in a pass over all of them. The sums of the columns of an array are taken
    where the array is written, and what is done with a total by the thread that knows it first.
    Samples and targets are gathered together. What is to be rounded to bfloat16 is so where it is
    written.

    Raises
    ------
    CannotCapture
        If a rule cannot be compiled.
    """
    work: list[Work] = []
    vectors = _vectors(calls)
    for name, arguments in calls:
        if name == "elementwise":
            rule, n_outs, *arrays = arguments
            try:
                trace(rule, len(arrays) - n_outs)
            except Exception as error:  # whatever a foreign rule raises
                raise CannotCapture(f"{rule!r} ({type(error).__name__}: {error})") from error
            one = Applied(rule, tuple(arrays[:n_outs]), tuple(arrays[n_outs:]))
            _add(work, _on_whole(one, vectors), arguments)
        elif name == "copy" and str(arguments[0].dtype) in CTYPES:
            x, out = arguments
            _add(work, Applied(same, (out,), (x,)), None)
        elif name == "round":
            _add_rounded(work, *arguments)
        elif name == "sum_columns" and _plain(*arguments) and arguments[0].ndim == 2:
            _add_columns(work, *arguments)
        elif name == "take_rows" and Gather.takes(*arguments):
            _add_rows(work, *arguments)
        elif name in ("total", "total_squares") and _plain(*arguments):
            work.append(Group((), total=(*arguments, name == "total_squares")))
        else:
            work.append(Single(name, arguments))
    return work


def _vectors(calls: Calls) -> dict[tuple[int, str], Any]:
    """The longest vector of each dtype that begins at an address, of those that rules meet."""
    found: dict[tuple[int, str], Any] = {}
    for name, arguments in calls:
        for x in arguments[2:] if name == "elementwise" else ():
            if is_array(x) and x.ndim == 1 and x.flags.c_contiguous:
                key = x.data.ptr, str(x.dtype)
                if key not in found or found[key].size < x.size:
                    found[key] = x
    return found


def _on_whole(one: Applied, vectors: dict[tuple[int, str], Any]) -> Applied:
    """The same on the first elements of longer vectors, if all of the rule's are part of such."""
    shape = one.outs[0].shape
    if len(shape) != 1:
        return one

    def whole(x: Any) -> Any:
        part = is_array(x) and x.shape == shape
        return vectors.get((x.data.ptr, str(x.dtype)), x) if part else x

    outs, operands = (tuple(map(whole, arrays)) for arrays in (one.outs, one.operands))
    sizes = {x.size for x in (*outs, *operands) if is_array(x) and x.shape != ()}
    if len(sizes) > 1 or sizes <= {shape[0]}:
        return one
    return Applied(one.rule, outs, operands, shape[0])


def _add(work: list[Work], one: Applied, arguments: Any) -> None:
    """A rule or, if `arguments` is None, a copy or the like."""
    shape = one.outs[0].shape
    arrays = [*one.outs, *(x for x in one.operands if is_array(x))]
    simple = all(out.shape == shape and index_of(out, shape) for out in one.outs)
    simple &= all(index_of(x, shape) is not None for x in one.operands if is_array(x))
    simple &= one.rule is to_bfloat16 or all(str(x.dtype) in CTYPES for x in arrays)
    if not simple:
        name = {same: "copy", to_bfloat16: "round"}.get(one.rule, "elementwise")
        work.append(Single(name, arguments or (*one.operands, *one.outs)))
        return
    reads = [View.of(x) for x in one.operands if is_array(x)]
    writes = [View.of(x) for x in one.outs]
    for earlier in reversed(work):
        if isinstance(earlier, Group) and may_join(earlier, one):
            earlier.rules.append(one)
            return
        if _meets(earlier, reads, writes):
            break
    work.append(Group(shape, [one]))


def _add_columns(work: list[Work], x: Any, out: Any) -> None:
    view, writes = View.of(x), [View.of(out)]
    for earlier in reversed(work):
        if isinstance(earlier, Group) and earlier.shape == x.shape and earlier.columns is None:
            known = [*earlier.reads, *earlier.writes]
            if view in known and not any(w.overlaps(v) for w in writes for v in known):
                earlier.columns = x, out
                return
        if _meets(earlier, [view], writes):
            break
    work.append(Group(x.shape, columns=(x, out)))


def _add_rounded(work: list[Work], x: Any, out: Any) -> None:
    view = View.of(x)
    for earlier in reversed(work):
        if isinstance(earlier, Gather):
            places = [k for k, (_, taken) in enumerate(earlier.pairs) if View.of(taken) == view]
            if places and places[0] not in earlier.rounded:
                earlier.rounded[places[0]] = out
                return
        if _meets(earlier, [view], [View.of(out)]):
            break
    _add(work, Applied(to_bfloat16, (out,), (x,)), None)


def _add_rows(work: list[Work], x: Any, indices: Any, out: Any) -> None:
    last = work[-1] if work else None
    if (
        isinstance(last, Gather)
        and View.of(last.indices) == View.of(indices)
        and not _meets(last, [View.of(x)], [View.of(out)])
    ):
        last.pairs.append((x, out))
        return
    work.append(Gather(indices, [(x, out)]))


def bias_behind(product: Work, work: Work) -> tuple[Any, bool, Group | None] | None:
    """The bias that `work` adds to a product, whether ReLU follows, and what it does then.

    None if it does other work. A stack of products is none.
    """
    if not (isinstance(product, Single) and product.name == "matmul" and isinstance(work, Group)):
        return None
    out, n = product.arguments[2], 0
    for one, (rule, n_operands) in zip(work.rules, _BIASED, strict=False):
        inplace = len(one.outs) == 1 and one.outs[0] is one.operands[0] is out
        if not inplace or len(one.operands) != n_operands or not alike(one.rule, rule, n_operands):
            break
        n += 1
    rest = work.rules[n:]
    if not n or work.columns or work.total or any(one.rule is not to_bfloat16 for one in rest):
        return None
    bias = work.rules[0].operands[1]
    if not is_array(bias) or bias.dtype != out.dtype or bias.shape != out.shape[1:]:
        return None
    return bias, n > 1, Group(work.shape, rest) if rest else None


def _sum(xp: Any, x: Any, bias: Any) -> Any:
    return x + bias


def _relu(xp: Any, x: Any) -> Any:
    return xp.maximum(x, 0.0)


_BIASED: tuple[tuple[Rule, int], ...] = ((_sum, 2), (_relu, 1))


def _meets(work: Work, reads: list[View], writes: list[View]) -> bool:
    """Whether something that reads and writes this must stay behind `work`."""
    return any(a.overlaps(b) for a in work.writes for b in (*reads, *writes)) or any(
        a.overlaps(b) for a in work.reads for b in writes
    )


def _plain(*arrays: Any) -> bool:
    return all(str(x.dtype) in CTYPES and x.size and x.flags.c_contiguous for x in arrays)


def overwritten(work: list[Work]) -> list[Any]:
    """What a step writes after it, or an earlier step, has read it: its state.

    Returns
    -------
    list of array
        Parameters, what an optimizer remembers, and the like: to be saved where a step is run that
        shall not count.
    """
    read: list[View] = []
    written: list[View] = []
    state = {}
    for one in work:
        read += [view for view in one.reads if not any(w.covers(view) for w in written)]
        for x in one.outs:
            view = View.of(x)
            if any(view.overlaps(v) for v in read):
                state[view] = x
            written.append(view)
    return [*state.values()]
