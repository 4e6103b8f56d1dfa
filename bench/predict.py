"""Prediction of many rows at once, beside other libraries."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np

from bench.contenders import Contender, ScikitLearn, Xpmlp
from bench.data import MIN_ROWS, data_option, find, out_option, rounds_option
from bench.environment import environment, headline, write
from bench.peers import Torch
from bench.problem import Problem, parse_shape
from bench.report import missing, table
from bench.workers import Worker, interleave, paired_ratio, threads
from xpmlp import fit

TOLERANCE = 1e-5  # of probabilities, in float32
_TRAINED_ROWS = 2000


class Onnx(Contender):
    """ONNX Runtime, with its own choice of threads."""

    name = "ONNX Runtime"
    library = "onnxruntime"

    @classmethod
    def missing(cls) -> str | None:
        return super().missing() or (None if find_spec("onnx") else "onnx is not installed")

    def prepare(self) -> None:
        import onnxruntime

        model = onnx_model(self.weights, self.biases)
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )

    def fit(self) -> list[float]:
        raise NotImplementedError("ONNX Runtime predicts only")

    def predict(self) -> Any:
        """Probabilities, of shape ``(n_samples, n_classes)``."""
        return self.session.run(None, {"a0": self.X})[0]


def onnx_model(weights: list[Any], biases: list[Any]) -> Any:
    """The network as an ONNX graph: one ``Gemm`` a layer, ReLU between them, softmax at the end."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants = [], []
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        constants.append(numpy_helper.from_array(weight, f"W{layer}"))
        constants.append(numpy_helper.from_array(bias, f"b{layer}"))
        operands = [f"a{layer}", f"W{layer}", f"b{layer}"]
        nodes.append(helper.make_node("Gemm", operands, [f"z{layer}"]))
        activation = "Relu" if layer < len(weights) - 1 else "Softmax"
        nodes.append(helper.make_node(activation, [f"z{layer}"], [f"a{layer + 1}"]))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, width])
        for name, width in (("a0", len(weights[0])), (f"a{len(weights)}", len(biases[-1])))
    ]
    graph = helper.make_graph(nodes, "mlp", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


PREDICTORS = {contender.name: contender for contender in (Xpmlp, ScikitLearn, Torch, Onnx)}
# Their arrays are NumPy's, so tracemalloc sees them.
SEEN_BY_TRACEMALLOC = (Xpmlp.name, ScikitLearn.name)


@click.command()
@click.option("--shape", default="784-256-128-10", show_default=True, help="The network.")
@click.option("--rows", default=60_000, show_default=True, type=click.IntRange(MIN_ROWS, 60_000))
@rounds_option()
@data_option
@out_option
def predict(shape: str, rows: int, rounds: int, data: Path | None, out: Path) -> None:
    """Time and memory of predicting many rows, beside other libraries; float32."""
    problem = Problem(parse_shape(shape), _TRAINED_ROWS, rows, path=find(data))
    missing = {c.name: reason for c in PREDICTORS.values() if (reason := c.missing())}
    record = {
        "environment": environment(),
        "shape": shape,
        "rows": rows,
        "rounds": rounds,
        "tolerance_of_outputs": TOLERANCE,
        "missing": missing,
        "contenders": measure([n for n in PREDICTORS if n not in missing], problem, rounds),
    }
    write(out / "predict.json", record)
    click.echo(report(record))


def measure(names: list[str], problem: Problem, rounds: int) -> dict[str, Any]:
    """Equal outputs, then times and memory."""
    weights, biases = trained(problem)
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker()) for name in names}
        first_calls, outputs = {}, {}
        for name, worker in workers.items():
            worker.prepare(make_predict, name, problem, weights, biases)
            first_calls[name], outputs[name] = worker.run()
        differences = {
            name: float(np.abs(output - outputs[Xpmlp.name]).max())
            for name, output in outputs.items()
        }
        for name, difference in differences.items():
            if not difference <= TOLERANCE:
                raise click.ClickException(
                    f"unequal outputs: those of {name} differ from xpmlp's by {difference:.1e}; "
                    "no times"
                )
        seconds = interleave(workers, rounds)
        return {
            name: {
                "difference": differences[name],
                "seconds_of_first_call": first_calls[name],
                "seconds": times,
                "median": median(times),
                "to_xpmlp": paired_ratio(times, seconds[Xpmlp.name]),
                "peak_megabytes": (
                    workers[name].peak_megabytes() if name in SEEN_BY_TRACEMALLOC else None
                ),
                "threads": workers[name].call(threads),
            }
            for name, times in seconds.items()
        }


def trained(problem: Problem) -> tuple[list[Any], list[Any]]:
    """Weights and biases after a short training, so that biases are not zero."""
    network = problem.network()
    X, y = problem.data()
    fit(network, X[:_TRAINED_ROWS], y[:_TRAINED_ROWS], loss="log_loss", epochs=2, verbose=0)
    return [np.array(w) for w in network.weights], [np.array(b) for b in network.biases]


def make_predict(
    name: str, problem: Problem, weights: list[Any], biases: list[Any]
) -> Callable[[], Any]:
    """The `predict` of a contender with these parameters, on the problem's data."""
    contender: Any = PREDICTORS[name](problem, *problem.data(), weights, biases)
    predict: Callable[[], Any] = contender.predict
    return predict


def report(record: dict[str, Any]) -> str:
    """A Markdown table with one row a contender."""
    rows = []
    for name, found in record["contenders"].items():
        times, peak = found["seconds"], found["peak_megabytes"]
        rows.append(
            [
                name,
                f"{found['median']:.4f} ({min(times):.4f} to {max(times):.4f})",
                f"{found['to_xpmlp']:.2f}",
                f"{found['seconds_of_first_call']:.3f}",
                "not seen" if peak is None else f"{peak:.1f}",
            ]
        )
    worst = max(found["difference"] for found in record["contenders"].values())
    lines = [
        headline(record["environment"]),
        f"{record['shape']}, float32, {record['rows']} rows in one call. Equal outputs: "
        f"probabilities differ by at most {worst:.1e}. Seconds: median (min to max) of "
        f"{record['rounds']} interleaved calls, each contender in a process of its own. Memory: "
        "tracemalloc's peak during a call beyond the data and the model, with the result.",
        *missing(record),
        "",
        table(["", "s", "to xpmlp", "first call, s", "MB"], rows),
    ]
    return "\n".join(lines)
