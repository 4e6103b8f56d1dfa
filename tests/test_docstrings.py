"""The estimators' docstrings: everything is documented, with the default that it has."""

import ast
import inspect
import re

import numpy as np
import pytest
import sklearn

from xpmlp import MLPClassifier, MLPRegressor

X = np.linspace(-1.0, 1.0, 60).reshape(20, 3)
CLASSES = pytest.mark.parametrize("cls", [MLPClassifier, MLPRegressor])


def sections(member):
    """The sections of a NumPy docstring, each a dict of name to (type, text)."""
    text = inspect.getdoc(member)
    parts = re.split(r"^(\w[\w ]*)\n-{3,}$", text, flags=re.M)
    found = {}
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        entries = found[title] = {}
        names = []
        for line in body.splitlines():
            if line and not line.startswith(" "):
                given, _, kind = line.partition(" : ")
                names = [name.strip() for name in given.split(",")]
                entries.update(dict.fromkeys(names, (kind, "")))
            else:
                for name in names:
                    kind, meaning = entries[name]
                    entries[name] = kind, f"{meaning} {line.strip()}".strip()
    return found


@CLASSES
def test_every_parameter_is_documented_and_nothing_else(cls):
    documented = sections(cls)["Parameters"]
    assert list(documented) != []
    assert documented.keys() == inspect.signature(cls).parameters.keys()
    for name, (kind, meaning) in documented.items():
        assert kind, name
        assert meaning.endswith("."), name


@CLASSES
def test_every_default_is_that_of_the_signature(cls):
    signature = inspect.signature(cls).parameters
    for name, (kind, meaning) in sections(cls)["Parameters"].items():
        default = signature[name].default
        if "optional" in kind:
            assert default is None, name
            continue
        _, given = kind.split(", default ")
        values = given.split(" and ")
        if len(values) > 1:  # beta_1, beta_2 : float, default 0.9 and 0.999
            both = [n for n in ("beta_1", "beta_2") if n in signature]
            given = values[both.index(name)]
        value = ast.literal_eval(given)
        assert (value, type(value)) == (default, type(default)), name
        assert meaning


@pytest.mark.skipif(
    tuple(map(int, sklearn.__version__.split(".")[:2])) < (1, 9), reason="needs scikit-learn 1.9"
)
@CLASSES
def test_scikit_learns_positional_parameters_are_positional_here(cls):
    from sklearn import neural_network

    theirs = inspect.signature(getattr(neural_network, cls.__name__)).parameters
    ours = inspect.signature(cls).parameters
    positional = [
        name for name, p in theirs.items() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    kinds = {name: p.kind for name, p in ours.items()}
    found = [n for n, kind in kinds.items() if kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert found == positional
    assert set(kinds.values()) == {
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    }


@pytest.mark.parametrize("options", [{}, {"early_stopping": True}, {"solver": "lbfgs"}], ids=str)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@CLASSES
def test_every_public_fitted_attribute_is_documented(cls, options):
    pandas = pytest.importorskip("pandas")
    documented = sections(cls)["Attributes"]
    table = pandas.DataFrame(X, columns=["a", "b", "c"])
    model = cls(max_iter=2, batch_size=8, device="cpu", **options)
    model.fit(table, np.arange(20) % 2)
    fitted = {name for name in vars(model) if name.endswith("_") and not name.startswith("_")}
    properties = {name for name in dir(cls) if name.endswith("_") and not name.startswith("_")}
    assert fitted | properties <= documented.keys()
    missing = {name for name in documented if not hasattr(model, name)}
    if "solver" in options:
        # They belong to the loop of epochs.
        assert missing == {
            "loss_curve_",
            "best_loss_",
            "validation_scores_",
            "best_validation_score_",
        }
    else:
        assert missing == set()


@CLASSES
def test_every_public_method_documents_its_arguments(cls):
    own = [
        name
        for name in ("fit", "partial_fit", "predict", "predict_proba", "score", "to")
        if hasattr(cls, name)
    ]
    for name in own:
        method = getattr(cls, name)
        documented = sections(method)
        arguments = [n for n in inspect.signature(method).parameters if n != "self"]
        assert list(documented["Parameters"]) == arguments, name
        assert "Returns" in documented, name


@CLASSES
def test_no_placeholder_is_left(cls):
    for member in (cls, cls.fit, cls.partial_fit):
        assert not re.search(r"\{[a-z_]+\}", member.__doc__)


def test_shared_parameters_have_one_text():
    one, other = (sections(cls)["Parameters"] for cls in (MLPClassifier, MLPRegressor))
    for name in one.keys() & other.keys() - {"loss"}:
        assert one[name] == other[name], name


@CLASSES
def test_named_choices_of_the_text_are_accepted(cls):
    """Every quoted name of a solver, activation, loss or schedule is a value that works."""
    documented = sections(cls)["Parameters"]
    accepted = {
        name: set(re.findall(r"'(\w+)'", " ".join(map(str, constraint))))
        for name, constraint in cls._parameter_constraints.items()
    }
    for name in ("activation", "solver", "learning_rate"):
        named = set(re.findall(r'"(\w+)"', " ".join(documented[name])))
        named -= {"adam"} if name == "learning_rate" else set()  # whose rate stays as it is
        assert named <= accepted[name], name
    losses = set(re.findall(r'"(\w+)"', " ".join(documented["loss"])))
    assert losses == accepted["loss"]
    solvers = set(re.findall(r'"(\w+)"', " ".join(documented["solver"])))
    assert solvers == accepted["solver"]
