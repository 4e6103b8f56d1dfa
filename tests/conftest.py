"""The one list of backends that feeds every test."""

from __future__ import annotations

import os
from importlib.util import find_spec

# scikit-learn's array-API checks need it, before SciPy is imported.
os.environ["SCIPY_ARRAY_API"] = "1"

import numpy as np
import pytest
from optional import Missing

from xpmlp.backends import Backend, available_backends, backend_class, get_backend
from xpmlp.testing import strict_backend

BACKENDS: dict[str, Backend] = {
    "numpy": get_backend("cpu", "numpy"),
}
if find_spec("array_api_strict"):
    BACKENDS["array-api-strict"] = strict_backend()
for _name in ("torch", "cupy"):
    if available_backends()[_name] == "usable":
        # The best device that there is, as in bench/gpu_check.py.
        _device = backend_class(_name).devices()[0]
        BACKENDS[_name] = get_backend(_device, _name, fallback=False)
if "cupy" in BACKENDS and os.environ.get("XPMLP_TEST_CAPTURED"):
    import xpmlp_cupy

    xpmlp_cupy.STEPS_TO_CAPTURE = 0
if "torch" in BACKENDS:
    import torch

    torch.set_num_threads(1)  # its threads cost more than they give on small tensors


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
