"""The one list of backends that feeds every test."""

from __future__ import annotations

import os
from importlib.util import find_spec

# scikit-learn's array-API checks need it, before SciPy is imported.
os.environ["SCIPY_ARRAY_API"] = "1"

import numpy as np
import pytest
from optional import Missing

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


@pytest.fixture(autouse=True)
def _with_what_it_needs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip a test that uses, or one of whose parameters is of, a library that is missing."""
    monkeypatch.setattr(Missing, "in_test", True)
    if hasattr(request.node, "callspec"):
        for value in request.node.callspec.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                if isinstance(part, Missing):
                    part.skip()
