"""Models for other programs: ONNX, the format that many runtimes on servers and phones read."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from xpmlp import __version__
from xpmlp.activations import ACTIVATIONS, Activation
from xpmlp.errors import warn_user
from xpmlp.files import write_atomically
from xpmlp.layers import Dense
from xpmlp.network import Network
from xpmlp.pipeline import Pipeline
from xpmlp.serialization import is_estimator
from xpmlp.tracing import Value, trace

OPSET = 17
_LARGEST = np.iinfo(np.int64).max
# What ONNX has an operator of its own for: its name, and which argument is which.
_OPERATORS: dict[str, tuple[str, dict[str, str]]] = {
    "sigmoid": ("Sigmoid", {}),
    "tanh": ("Tanh", {}),
    "relu": ("Relu", {}),
    "leaky_relu": ("LeakyRelu", {"alpha": "slope"}),
    "elu": ("Elu", {"alpha": "alpha"}),
    "softplus": ("Softplus", {}),
    "exp": ("Exp", {}),
}
# Operators of what a rule may do. Some take more than one: see _Graph.
_OF_RULES = {
    "+": "Add", "-": "Sub", "*": "Mul", "/": "Div", "negative": "Neg", "<": "Less",
    "<=": "LessOrEqual", ">": "Greater", ">=": "GreaterOrEqual", "==": "Equal", "&": "And",
    "|": "Or", "~": "Not", "abs": "Abs", "erf": "Erf", "exp": "Exp", "log": "Log",
    "maximum": "Max", "minimum": "Min", "sign": "Sign", "sqrt": "Sqrt", "tanh": "Tanh",
    "where": "Where",
}  # fmt: skip


def export_onnx(model: Any, path: str | os.PathLike[str]) -> None:
    """Write a model as ONNX, with its weights and its scaling, to compute in float32.

    The input is ``X``, float32 of shape ``(n, n_features)``. The outputs are ``output`` of a
    network, ``prediction`` of a regression, ``label`` and ``probabilities`` of a classifier.
    Activations without an operator in ONNX are written out by their formula, your own, too.
    Labels are int64, uint64 where one is too large for it, bool, float32 or text; a column that is
    far from 0, such as a time in seconds since 1970, is rounded to float32 before it is scaled.

    Parameters
    ----------
    model : Network, MLPClassifier, MLPRegressor, or a pipeline of the command line
    path : path-like

    Raises
    ------
    TypeError
        If it is another object.
    ValueError
        If a parameter is not finite or beyond float32, an activation does more than a rule may,
        the file would be larger than ONNX allows, 2 GB, or a name is no Unicode text.
    ImportError
        If onnx is not installed.
    OSError
        If the file cannot be written.

    Warns
    -----
    UserWarning
        Where float32 is too coarse for a column of a pipeline, naming it.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError("export_onnx needs onnx: pip install 'xpmlp[onnx]'") from error
    graph = _Graph(onnx)
    network, x = model, "X"
    if isinstance(model, Pipeline):
        network = model.network
        _warn_of_rounding(model)
        shifted = graph.add("Sub", x, graph.constant(model.shift, "shift"))
        x = graph.add("Mul", shifted, graph.constant(model.factor, "factor"))
    elif is_estimator(model):
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(model)
        network = model.network_
    if not isinstance(network, Network):
        raise TypeError(f"model must be a Network, an MLPClassifier or MLPRegressor, got {model!r}")
    output = _forward(graph, network, x)
    try:
        names = _outputs(graph, model, network, output)
        made = graph.model(network.n_features, names, _metadata(model))
    except UnicodeEncodeError as error:
        raise ValueError(
            f"a name of a class or column is no text that ONNX has ({error})"
        ) from error
    try:
        content = made.SerializeToString()
        onnx.checker.check_model(content, full_check=True)
    except ValueError as error:  # of protobuf
        raise ValueError(f"the model is too large for ONNX ({error})") from error
    write_atomically(path, content)


class _Graph:
    """Nodes and constants of a model that is being written."""

    def __init__(self, onnx: Any) -> None:
        self.onnx, self.nodes, self.constants = onnx, [], []  # type: ignore[var-annotated]
        self._n = 0

    def add(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """A node; returns the name of its output."""
        self._n += 1
        name = name or f"{operator.lower()}_{self._n}"
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, [name], **attributes))
        return name

    def constant(self, values: Any, name: str = "") -> str:
        """An array as an initializer, float32 unless it holds whole numbers or text."""
        array = np.asarray(values)
        if array.dtype.kind == "f":
            with np.errstate(over="ignore"):
                array = array.astype(np.float32)
            if not np.isfinite(array).all():
                raise ValueError("the model holds parameters that are not finite in float32")
        if array.dtype.kind in "UO":
            array = array.astype(object)
        self._n += 1
        name = name or f"constant_{self._n}"
        self.constants.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def rule(self, rule: Any, z: str, numbers: Sequence[float]) -> str:
        """An activation by its formula."""
        try:
            written = trace(rule, 1 + len(numbers))
        except Exception as error:
            raise ValueError(f"{rule.__name__} cannot be written as ONNX ({error})") from error
        values = [z, *(self.constant(np.float32(number)) for number in numbers)]

        def text(argument: Any) -> str:
            if isinstance(argument, Value):
                return values[argument.place]
            return self.constant(np.float32(argument))

        for operation, arguments in written.nodes[len(values) :]:
            inputs = [text(argument) for argument in arguments]
            if operation == "expm1":
                value = self.add("Sub", self.add("Exp", *inputs), self.constant(np.float32(1.0)))
            elif operation == "log1p":
                value = self.add("Log", self.add("Add", *inputs, self.constant(np.float32(1.0))))
            elif operation == "!=":
                value = self.add("Not", self.add("Equal", *inputs))
            else:
                value = self.add(_OF_RULES[operation], *inputs)
            values.append(value)
        return text(written.results[0])

    def model(self, n_features: int, outputs: dict[str, Any], metadata: dict[str, str]) -> Any:
        """The model, whose number of rows is free."""
        helper, proto = self.onnx.helper, self.onnx.TensorProto
        x = helper.make_tensor_value_info("X", proto.FLOAT, ["n", n_features])
        made = [
            helper.make_tensor_value_info(name, getattr(proto, kind), ["n", *shape])
            for name, (kind, *shape) in outputs.items()
        ]
        graph = helper.make_graph(self.nodes, "xpmlp", [x], made, self.constants)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=8,
            producer_name="xpmlp",
            producer_version=__version__,
        )
        helper.set_model_props(model, metadata)
        return model


def _warn_of_rounding(pipeline: Pipeline) -> None:
    """float32 has 24 bits: far from 0, they are too few for what a column's values differ by."""
    rounded = np.abs(pipeline.shift * pipeline.factor) * 2.0**-24
    coarse = [name for name, size in zip(pipeline.features, rounded, strict=True) if size > 1e-3]
    if coarse:
        warn_user(
            f"columns {', '.join(map(repr, coarse))} are so far from 0, for what their values "
            f"differ by, that float32 rounds them by up to {rounded.max():.1g} of their scale: "
            "the ONNX model predicts something else; subtract a constant from them before training"
        )


def _forward(graph: _Graph, network: Network, x: str) -> str:
    to_host = network.backend.to_host
    dense = [layer for layer in network.layers if isinstance(layer, Dense)]
    for index, layer in enumerate(dense):
        weight, bias = network.weights[index], network.biases[index]
        operands = [graph.constant(to_host(weight), f"weights_{index}")]
        if bias is not None:
            operands.append(graph.constant(to_host(bias), f"bias_{index}"))
        x = _activate(graph, layer.activation, graph.add("Gemm", x, *operands))
    return x


def _activate(graph: _Graph, activation: Activation, z: str) -> str:
    if activation.name == "identity":
        return z
    if activation.name == "softmax":
        return graph.add("Softmax", z, axis=-1)
    if ACTIVATIONS.get(activation.name) is type(activation) and activation.name in _OPERATORS:
        operator, fields = _OPERATORS[activation.name]
        attributes = {name: float(getattr(activation, field)) for name, field in fields.items()}
        return graph.add(operator, z, name="", **attributes)
    return graph.rule(type(activation).forward_rule, z, activation.params)


def _outputs(graph: _Graph, model: Any, network: Network, output: str) -> dict[str, Any]:
    """Add what the outputs stand for; names and types of the results."""
    n_outputs = network.n_outputs
    classes = _classes(model)
    if isinstance(model, Network):
        graph.add("Identity", output, name="output")
        return {"output": ("FLOAT", n_outputs)}
    if classes is None:
        if isinstance(model, Pipeline):
            scale, shift = (graph.constant(np.float32(x)) for x in
                            (model.target_scale, model.target_shift))  # fmt: skip
            output = graph.add("Add", graph.add("Mul", output, scale), shift)
        if n_outputs == 1:
            graph.add("Squeeze", output, graph.constant(np.array([1])), name="prediction")
            return {"prediction": ("FLOAT",)}
        graph.add("Identity", output, name="prediction")
        return {"prediction": ("FLOAT", n_outputs)}
    half, column = graph.constant(np.float32(0.5)), graph.constant(np.array([1]))
    if _several(model):
        graph.add("Identity", output, name="probabilities")
        graph.add("Cast", graph.add("Greater", output, half), name="label", to=7)  # int64
        return {"label": ("INT64", n_outputs), "probabilities": ("FLOAT", n_outputs)}
    if n_outputs == 1:
        one = graph.constant(np.float32(1.0))
        graph.add("Concat", graph.add("Sub", one, output), output, name="probabilities", axis=1)
        chosen = graph.add("Cast", graph.add("Greater", output, half), to=7)
        if len(classes) == 1:
            classes = classes[[0, 0]]  # what a classifier of one class predicts in any case
        number = graph.add("Squeeze", chosen, column)
    else:
        graph.add("Identity", output, name="probabilities")
        number = graph.add("ArgMax", output, axis=1, keepdims=0)
    graph.add("Gather", graph.constant(classes, "classes"), number, name="label")
    kind = {"b": "BOOL", "O": "STRING", "f": "FLOAT", "u": "UINT64"}.get(
        classes.dtype.kind, "INT64"
    )
    return {"label": (kind,), "probabilities": ("FLOAT", max(2, n_outputs))}


def _classes(model: Any) -> Any:
    """What the classes are called, as an array that ONNX has, or None."""
    if isinstance(model, Network):
        return None
    classes = model.classes if isinstance(model, Pipeline) else getattr(model, "classes_", None)
    if classes is None:
        return None
    names = list(classes)
    if any(isinstance(name, str) for name in names):
        return np.array([str(name) for name in names], dtype=object)
    array = np.asarray(names)
    if array.dtype.kind == "u":
        return array.astype(np.uint64 if array.max() > _LARGEST else np.int64)
    return array.astype(np.int64 if array.dtype.kind == "i" else array.dtype)


def _several(model: Any) -> bool:
    """Whether each row may have several labels."""
    return bool(not isinstance(model, Pipeline) and model._labels().get("several"))


def _metadata(model: Any) -> dict[str, str]:
    if isinstance(model, Pipeline):
        return {"features": json.dumps(model.features), "target": model.target}
    names = getattr(model, "feature_names_in_", None)
    return {} if names is None else {"features": json.dumps(list(map(str, names)))}
