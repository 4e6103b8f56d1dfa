"""scikit-learn's own tests of its MLP, taken from the installed package, with our classes."""

import importlib.util
from pathlib import Path

import pytest
import sklearn
import sklearn.neural_network

from xpmlp import MLPClassifier, MLPRegressor

# They read or set private attributes.
PRIVATE = {
    "test_fit",
    "test_gradient",
    "test_learning_rate_warmstart",
    "test_adaptive_learning_rate",
    "test_n_iter_no_change",
    "test_n_iter_no_change_inf",
}

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:batch_size=.* is larger than:UserWarning"),
]


def suite():
    """The module of tests, imported while our classes stand in for scikit-learn's."""
    place = sklearn.neural_network
    path = Path(place.__file__).parent / "tests/test_mlp.py"
    spec = importlib.util.spec_from_file_location("sklearn_test_mlp", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, "MLPClassifier", MLPClassifier)
        patch.setattr(place, "MLPRegressor", MLPRegressor)
        spec.loader.exec_module(module)
    assert module.MLPClassifier is MLPClassifier
    return module


if tuple(map(int, sklearn.__version__.split(".")[:2])) >= (1, 9):
    found = {name: test for name, test in vars(suite()).items() if name.startswith("test_")}
    assert found.keys() > PRIVATE
    globals().update({name: test for name, test in found.items() if name not in PRIVATE})


@pytest.fixture
def global_random_seed():
    return 42
