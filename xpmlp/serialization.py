"""Model files: one safetensors file with the parameters, and a description of the rest as JSON.

Nothing in a file is executed or imported: layers are named, and names are looked up in the
library's own tables. Format 1: tensors ``parameters`` and, of a pipeline, ``scaler.shift`` and
``scaler.factor``; the metadata entry ``xpmlp`` holds the description.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from xpmlp.activations import ACTIVATIONS
from xpmlp.backends import get_backend
from xpmlp.errors import ModelFileError
from xpmlp.initializers import INITIALIZERS
from xpmlp.layers import Dense, Dropout, Layer
from xpmlp.names import build, describe
from xpmlp.network import Network, offered

FORMAT = 1


def save(network: Network, path: str | os.PathLike[str]) -> None:
    """Write a network to one file; see :func:`write_model` for the errors.

    Parameters
    ----------
    network : Network
    path : path-like
        An old file is replaced at once, when the new one is whole.
    """
    if not isinstance(network, Network):
        hint = "; give its network_, or pickle it" if hasattr(network, "fit") else ""
        raise TypeError(f"network must be a Network, got {network!r}{hint}")
    write_model(path, network, {}, {})


def load(path: str | os.PathLike[str], device: str = "auto") -> Network:
    """The network of a file that :func:`save`, or the command line, wrote.

    A precision that the device does not offer gives way to IEEE arithmetic.

    Parameters
    ----------
    path : path-like
    device : str, default "auto"
        See :func:`xpmlp.get_backend`.

    Raises
    ------
    ModelFileError
        If the file is not a model of xpmlp, is damaged, or is of a newer format.
    OSError
        If it cannot be read.
    """
    return read_model(path, device)[0]


def write_model(
    path: str | os.PathLike[str],
    network: Network,
    tensors: Mapping[str, Any],
    description: Mapping[str, Any],
) -> None:
    """Write a network, and what belongs to it, to `path`; an old file is replaced at once.

    Parameters
    ----------
    path : path-like
    network : Network
    tensors : mapping of str to NumPy array
        Further arrays, by names other than ``parameters``.
    description : mapping
        Further plain data.

    Raises
    ------
    ValueError
        If a parameter is NaN or infinite, or a layer has an activation or initializer that is
        not the library's own: no file could be read again that names it.
    OSError
        If the file cannot be written. An old one is intact then.
    """
    from safetensors.numpy import save

    parameters = np.ascontiguousarray(network.backend.to_host(network.parameters))
    if not np.isfinite(parameters).all():
        raise ValueError("the network holds NaN or infinite parameters and is not saved")
    described = {
        "format": FORMAT,
        "n_features": network.n_features,
        "layers": [_describe_layer(layer) for layer in network.layers],
        "dtype": network.dtype,
        "precision": network.precision,
        "seed": network.seed,
        **description,
    }
    content = save(
        {"parameters": parameters, **tensors},
        metadata={"xpmlp": json.dumps(described, allow_nan=False, default=_plain)},
    )
    write_atomically(path, content)


def read_model(
    path: str | os.PathLike[str], device: str = "auto"
) -> tuple[Network, dict[str, Any], dict[str, Any]]:
    """The network, further tensors and description of a file that :func:`write_model` wrote.

    Raises
    ------
    ModelFileError
        If the file is not a model of xpmlp, is damaged, or is of a newer format.
    OSError
        If it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    backend = get_backend(device)
    with open(path, "rb"):
        pass  # an OSError that names the path, where there is one
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        description = json.loads(metadata["xpmlp"])
        if description["format"] != FORMAT:
            raise ModelFileError(
                f"{path} has format {description['format']!r}, this version reads {FORMAT}"
            )
        layers = [_build_layer(layer) for layer in description["layers"]]
        n_features, dtype, seed = (description[key] for key in ("n_features", "dtype", "seed"))
        parameters = tensors.pop("parameters")
        expected = (_count(n_features, layers),)
        if parameters.shape != expected or parameters.dtype != dtype:
            raise ModelFileError(
                f"{path} holds {parameters.dtype} parameters of shape {parameters.shape}, its "
                f"layers have {dtype} parameters of shape {expected}"
            )
        if not np.isfinite(parameters).all():
            raise ModelFileError(f"{path} holds NaN or infinite parameters")
        network = Network(
            n_features,
            layers,
            backend=backend,
            dtype=dtype,
            precision=offered(description.get("precision", "ieee"), backend),
            seed=seed,
            parameters=parameters,
        )
    except ModelFileError:
        raise
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is not a model file of xpmlp, or is damaged ({error})") from (
            error
        )
    return network, tensors, description


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file so that at any moment `path` is either the old one or the new one, whole.

    A link is followed; what is no regular file, such as a pipe, is written to as it is.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        Path(path).write_bytes(content)
        return
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


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
    for value, table in ((layer.activation, ACTIVATIONS), (layer.init, INITIALIZERS)):
        if table.get(value.name) is not type(value):
            raise ValueError(f"{value!r} is not one of the library's own and cannot be saved")
    return {
        "type": "Dense",
        "units": layer.units,
        "activation": describe(layer.activation),
        "bias": layer.bias,
        "init": describe(layer.init),
    }


def _plain(value: Any) -> Any:
    """A number of another kind, such as NumPy's, as Python's."""
    if isinstance(value, Real):
        return float(value)
    raise TypeError(f"{value!r} cannot be saved")


def _build_layer(described: dict[str, Any]) -> Layer:
    if described["type"] == "Dropout":
        return Dropout(described["rate"])
    if described["type"] != "Dense":
        raise ValueError(f"layer type {described['type']!r} is not known")
    return Dense(
        described["units"],
        build("activation", described["activation"], ACTIVATIONS),
        described["bias"],
        build("init", described["init"], INITIALIZERS),
    )
