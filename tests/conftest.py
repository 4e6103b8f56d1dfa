"""The one list of backends that feeds every test."""

from __future__ import annotations

import os
from importlib.util import find_spec

# scikit-learn's array-API checks need it, before SciPy is imported.
os.environ["SCIPY_ARRAY_API"] = "1"

import numpy as np
import pytest

from xpmlp.backends import Backend, available_backends, get_backend
from xpmlp.testing import strict_backend

BACKENDS: dict[str, Backend] = {
    "numpy": get_backend("cpu", "numpy"),
}
if find_spec("array_api_strict"):
    BACKENDS["array-api-strict"] = strict_backend()
if available_backends()["torch"] == "usable":
    import torch

    torch.set_num_threads(1)  # its threads cost more than they give on small tensors
    BACKENDS["torch"] = get_backend("cpu", "torch")
if available_backends()["cupy"] == "usable":
    BACKENDS["cupy"] = get_backend("cuda", "cupy")


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> Backend:
    return BACKENDS[request.param]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
