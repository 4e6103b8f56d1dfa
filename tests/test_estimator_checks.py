"""scikit-learn's checks of an estimator, its array-API checks among them."""

import os

import pytest
import sklearn
from sklearn.utils.estimator_checks import parametrize_with_checks

from xpmlp import MLPClassifier, MLPRegressor
from xpmlp.backends import available_backends

pytestmark = [
    pytest.mark.skipif(
        tuple(map(int, sklearn.__version__.split(".")[:2])) < (1, 9),
        reason="needs scikit-learn 1.9",
    ),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning"),
    pytest.mark.filterwarnings("ignore:batch_size=.* is larger than:UserWarning"),
]


@parametrize_with_checks([MLPClassifier(max_iter=100), MLPRegressor(max_iter=100)])
def test_check(estimator, check):
    assert os.environ["SCIPY_ARRAY_API"] == "1"  # or the array-API checks were missing
    options = getattr(check, "keywords", {})
    if options.get("array_namespace") == "cupy" and available_backends()["cupy"] != "usable":
        pytest.skip(available_backends()["cupy"])
    check(estimator)
