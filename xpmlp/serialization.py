"""Model files: a network, an estimator or a pipeline as one file of tensors and plain data.

Nothing in a file is executed or imported: layers, losses and the rest are named, and names are
looked up in the library's own tables. The format is described in ``docs/model-files.md``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from xpmlp.activations import ACTIVATIONS
from xpmlp.backends import get_backend
from xpmlp.errors import ModelFileError
from xpmlp.files import decode, encode, not_ours, read_tensors, write_tensors
from xpmlp.history import History
from xpmlp.initializers import INITIALIZERS
from xpmlp.layers import Dense, Dropout, Layer
from xpmlp.losses import LOSSES
from xpmlp.names import build, describe
from xpmlp.network import OF_FLOAT32, Network, rebuild
from xpmlp.optimizers import OPTIMIZERS
from xpmlp.pipeline import Pipeline
from xpmlp.schedules import SCHEDULES

FORMAT = 2
# Types of what a description must have, and nothing besides; of a network at first.
_NETWORK = {
    "n_features": int, "layers": list, "dtype": str, "precision": str, "seed": int,
}  # fmt: skip
_PIPELINE = {
    "features": list, "target": str, "classes": (list, type(None)),
    "target_shift": (int, float), "target_scale": (int, float),
}  # fmt: skip
_ESTIMATOR = {"class": str, "parameters": dict, "fitted": dict, "history": dict, "labels": dict}
# Objects that parameters of an estimator may be, besides plain values.
_TABLES: dict[str, Mapping[str, type[Any]]] = {
    "activation": ACTIVATIONS,
    "loss": LOSSES,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
}
_ESTIMATORS = ("MLPClassifier", "MLPRegressor")
# What an estimator knows after a fit, besides its network, classes and history: after every one,
# and, depending on the solver and the data, besides.
_ALWAYS: dict[str, Any] = {"n_features_in_": int, "n_outputs_": int, "n_iter_": int, "t_": int}
_FITTED: dict[str, Any] = {
    **_ALWAYS,
    "feature_names_in_": np.ndarray,
    "loss_": (int, float),
    "loss_curve_": list,
    "best_loss_": (int, float, type(None)),
    "validation_scores_": (list, type(None)),
    "best_validation_score_": (int, float, type(None)),
    "_best": tuple,
    "_no_improvement_count": int,
}


def save(model: Any, path: str | os.PathLike[str]) -> None:
    """Write a model to one file.

    Of an estimator the file holds what it takes to predict, its parameters and its history; where
    training goes on after :func:`load`, it does so with a fresh optimizer state. For that there
    are :class:`xpmlp.Checkpoint` and pickles.

    Parameters
    ----------
    model : Network, MLPClassifier, MLPRegressor, or a pipeline of the command line
    path : path-like
        An old file is replaced at once, when the new one is whole.

    Raises
    ------
    TypeError
        If it is another object.
    ValueError
        If the model holds NaN or infinite parameters, or something that no file can name: a
        function, or an activation, loss or callback that is not the library's own.
    sklearn.exceptions.NotFittedError
        If it is an estimator that has not been fitted.
    OSError
        If the file cannot be written. An old one is intact then.
    """
    if isinstance(model, Network):
        network, tensors, described = model, {}, {}
    elif isinstance(model, Pipeline):
        network, tensors, described = model.network, *_describe_pipeline(model)
    elif is_estimator(model):
        network, tensors, described = _describe_estimator(model)
    else:
        raise TypeError(
            f"model must be a Network, an {' or '.join(_ESTIMATORS)}, got {model!r}; of a pipeline "
            "of scikit-learn's, save its last step"
        )
    parameters = np.asarray(network.backend.to_host(network.parameters))
    if not np.isfinite(parameters).all():
        raise ValueError("the network holds NaN or infinite parameters and is not saved")
    description = {"format": FORMAT, **describe_network(network), **described}
    write_tensors(path, {"parameters": parameters, **tensors}, description)


def load(path: str | os.PathLike[str], device: str = "auto") -> Any:
    """The model of a file that :func:`save`, or the command line, wrote.

    A precision that the device does not offer gives way to IEEE arithmetic.

    Parameters
    ----------
    path : path-like
    device : str, default "auto"
        Where it computes; see :func:`xpmlp.get_backend`.

    Returns
    -------
    Network, MLPClassifier, MLPRegressor or xpmlp.pipeline.Pipeline
        As was saved.

    Raises
    ------
    ModelFileError
        If the file is not a model of xpmlp, is damaged, or is of a newer format.
    OSError
        If it cannot be read.
    """
    backend = get_backend(device)
    tensors, description = read_tensors(path)
    written_in = description.pop("format", None)
    signed = description.pop("sha256", None) is not None
    if type(written_in) is not int or written_in not in (1, FORMAT):
        raise ModelFileError(f"{path} has format {written_in!r}, this version reads 1 to {FORMAT}")
    try:
        if not signed and written_in != 1:
            raise ValueError("it has no digest")
        if written_in == 1:
            description.setdefault("precision", "ieee")
        parts = {
            name: description.pop(name) for name in ("pipeline", "estimator") if name in description
        }
        network = _build_network(tensors, description, backend)
        if parts.keys() == {"pipeline"}:
            model: Any = _build_pipeline(network, tensors, parts["pipeline"])
        elif parts.keys() == {"estimator"}:
            model = _build_estimator(network, parts["estimator"])
        elif not parts:
            model = network
        else:
            raise ValueError("it is a pipeline and an estimator")
        if tensors:
            raise ValueError(f"it has tensors of no use: {', '.join(tensors)}")
        return model
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise not_ours(path, error) from error


# --- Networks -----------------------------------------------------------------------------------


def describe_network(network: Network) -> dict[str, Any]:
    """All of a network but its parameters, as plain data."""
    return {
        "n_features": network.n_features,
        "layers": [_describe_layer(layer) for layer in network.layers],
        "dtype": network.dtype,
        "precision": network.precision,
        "seed": network.seed,
    }


def _build_network(tensors: dict[str, Any], description: Any, backend: Any) -> Network:
    """Takes the parameters out of `tensors`."""
    _check("the network", description, _NETWORK)
    if description["precision"] not in ("ieee", *OF_FLOAT32):
        raise ValueError(f"precision {description['precision']!r} is not known")
    layers = [_build_layer(layer) for layer in description["layers"]]
    parameters = tensors.pop("parameters")
    expected, dtype = (_count(description["n_features"], layers),), description["dtype"]
    if parameters.shape != expected or parameters.dtype != dtype:
        raise ValueError(
            f"it holds {parameters.dtype} parameters of shape {parameters.shape}, its layers have "
            f"{dtype} parameters of shape {expected}"
        )
    if not np.isfinite(parameters).all():
        raise ValueError("it holds NaN or infinite parameters")
    precision, seed = description["precision"], description["seed"]
    built = description["n_features"], layers, dtype, precision, seed
    return rebuild(built, backend, backend.from_host(parameters))


def _count(n_features: int, layers: list[Layer]) -> int:
    """Parameters of a network, without building it."""
    total, width = 0, n_features
    for layer in layers:
        if isinstance(layer, Dense):
            total += layer.n_parameters(width)
            width = layer.units
    return total


def _describe_layer(layer: Layer) -> dict[str, Any]:
    if isinstance(layer, Dropout):
        return {"type": "Dropout", "rate": layer.rate}
    return {
        "type": "Dense",
        "units": layer.units,
        "activation": _describe(layer.activation, ACTIVATIONS),
        "bias": layer.bias,
        "init": _describe(layer.init, INITIALIZERS),
    }


def _build_layer(described: Any) -> Layer:
    if described["type"] == "Dropout":
        _check("Dropout", described, {"type": str, "rate": (int, float)})
        return Dropout(described["rate"])
    if described["type"] != "Dense":
        raise ValueError(f"layer type {described['type']!r} is not known")
    wanted = {"type": str, "units": int, "activation": dict, "bias": bool, "init": dict}
    _check("Dense", described, wanted)
    return Dense(
        described["units"],
        build("activation", described["activation"], ACTIVATIONS),
        described["bias"],
        build("init", described["init"], INITIALIZERS),
    )


# --- Pipelines ----------------------------------------------------------------------------------


def _describe_pipeline(pipeline: Pipeline) -> tuple[dict[str, Any], dict[str, Any]]:
    tensors = {"scaler.shift": pipeline.shift, "scaler.factor": pipeline.factor}
    return tensors, {"pipeline": {name: getattr(pipeline, name) for name in _PIPELINE}}


def _build_pipeline(network: Network, tensors: dict[str, Any], described: Any) -> Pipeline:
    _check("the pipeline", described, _PIPELINE)
    shift, factor = tensors.pop("scaler.shift"), tensors.pop("scaler.factor")
    pipeline = Pipeline(network, shift=shift, factor=factor, **described)
    features, classes = pipeline.features, pipeline.classes
    n, n_classes = network.n_features, len(classes or ())
    if not (
        shift.shape == factor.shape == (n,)
        and all(isinstance(feature, str) for feature in features)
        and len(set(features)) == len(features) == n
        and (classes is None or n_classes > 1)
        and all(isinstance(name, str | int | float) for name in classes or ())
        and network.n_outputs == (1 if n_classes == 2 else max(1, n_classes))
    ):
        raise ValueError("its scaler, features or classes do not fit its network")
    return pipeline


# --- Estimators ---------------------------------------------------------------------------------


def is_estimator(model: Any) -> bool:
    cls = type(model)  # a class derived from one of ours could not be found again
    return cls.__module__ == "xpmlp.estimators" and cls.__name__ in _ESTIMATORS


def _describe_estimator(model: Any) -> tuple[Network, dict[str, Any], dict[str, Any]]:
    from sklearn.utils.validation import check_is_fitted

    check_is_fitted(model)
    parameters = {}
    for name, value in model.get_params(deep=False).items():
        try:
            parameters[name] = _encode(value)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{name}={value!r} cannot be saved ({error}); set it to another"
            ) from (error)
    fitted = {name: _encode(getattr(model, name)) for name in _FITTED if hasattr(model, name)}
    history = {"values": _encode(model.history_.to_dict()), "stopped": model.history_.stopped}
    described = {
        "class": type(model).__name__,
        "parameters": parameters,
        "fitted": fitted,
        "history": history,
        "labels": {name: _encode(value) for name, value in model._labels().items()},
    }
    return model.network_, {}, {"estimator": described}


def _build_estimator(network: Network, described: Any) -> Any:
    from xpmlp import estimators

    _check("the estimator", described, _ESTIMATOR)
    if described["class"] not in _ESTIMATORS:
        raise ValueError(f"its class {described['class']!r} is not known")
    parameters = {name: _decode(value) for name, value in described["parameters"].items()}
    model = getattr(estimators, described["class"])(**parameters)
    fitted = {name: _decode(value) for name, value in described["fitted"].items()}
    _check("what it has learnt", fitted, {
        name: kind for name, kind in _FITTED.items() if name in {*_ALWAYS, *fitted}
    })  # fmt: skip
    _check_learnt(fitted)
    _check("the history", described["history"], {"values": dict, "stopped": (str, type(None))})
    history = History.of(_decode(described["history"]["values"]), described["history"]["stopped"])
    labels = {name: _decode(value) for name, value in described["labels"].items()}
    model._restore(network, fitted, history, labels)
    return model


def _check_learnt(fitted: dict[str, Any]) -> None:
    """Refuse what is within those lists, tuples and arrays, where it is of another type."""
    for name in ("loss_curve_", "validation_scores_"):
        if not all(type(value) in (int, float) for value in fitted.get(name) or ()):
            raise ValueError(f"{name} holds what are no numbers")
    best = fitted.get("_best", ("", 0.0))
    if [type(value) for value in best] not in ([str, float], [str, int]):
        raise ValueError("_best is not a key and a number")
    names = fitted.get("feature_names_in_")
    if names is not None and (
        len(names) != fitted["n_features_in_"] or not all(isinstance(name, str) for name in names)
    ):
        raise ValueError("feature_names_in_ are not the names of its features")


# --- Objects in plain data -----------------------------------------------------------------------


def _encode(value: Any) -> Any:
    return encode(value, _encode_object)


def _encode_object(value: Any) -> Any:
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        return np.dtype(value).name
    if isinstance(value, Dense | Dropout):
        return {"layer": _describe_layer(value)}
    for kind, table in _TABLES.items():
        if table.get(str(getattr(value, "name", ""))) is type(value):
            return {kind: _describe(value, table)}
    raise TypeError("it is not the library's own")


def _decode(value: Any) -> Any:
    return decode(value, _decode_object)


def _decode_object(kind: str, content: Any) -> Any:
    if kind == "layer":
        return _build_layer(content)
    if kind in _TABLES:
        return build(kind, {name: _decode(one) for name, one in content.items()}, _TABLES[kind])
    raise ValueError(f"{kind!r} is not known")


def _describe(value: Any, table: Mapping[str, type[Any]]) -> dict[str, Any]:
    """Name and arguments of an object of a table."""
    if table.get(value.name) is not type(value):
        raise ValueError(f"{value!r} is not one of the library's own and cannot be saved")
    return {name: _encode(one) for name, one in describe(value).items()}


def _check(what: str, described: Any, wanted: Mapping[str, Any]) -> None:
    """Refuse anything but a mapping of these names to values of these types."""
    if not isinstance(described, dict) or described.keys() != wanted.keys():
        given = ", ".join(described) if isinstance(described, dict) else type(described).__name__
        raise ValueError(f"{what} must have {', '.join(wanted)}, got {given}")
    for name, kind in wanted.items():
        value = described[name]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{name} of {what} must be of another type than {value!r}")
