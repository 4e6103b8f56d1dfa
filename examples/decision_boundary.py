"""What a network has learnt, as a map: too few units, too many, and many with a penalty."""

import sys
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into files, needs no screen
from matplotlib import pyplot
from matplotlib.colors import ListedColormap
from sklearn.datasets import make_moons
from sklearn.exceptions import ConvergenceWarning
from sklearn.inspection import DecisionBoundaryDisplay
from sklearn.metrics import log_loss

from xpmlp import MLPClassifier

path = Path(sys.argv[1] if len(sys.argv) > 1 else "out/decision_boundary.png")
X, y = make_moons(100, noise=0.3, random_state=0)
X_test, y_test = make_moons(1000, noise=0.3, random_state=1)
options = {"learning_rate_init": 0.01, "max_iter": 500, "n_iter_no_change": 500, "random_state": 0}
models = {
    "2 hidden units": MLPClassifier(2, **options),
    "64 + 64 hidden units": MLPClassifier((64, 64), **options),
    "64 + 64, alpha=1": MLPClassifier((64, 64), alpha=1, **options),
}
figure, panels = pyplot.subplots(1, 3, figsize=(11, 4.2), sharey=True, layout="constrained")

for ax, (name, model) in zip(panels, models.items(), strict=True):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # five hundred epochs, come what may
        model.fit(X, y)

    # White is where the model is in doubt. Two units bend the boundary too little. Many units wind
    # it round single points and are sure everywhere: hard edges, and a high log loss on new data,
    # which is what being sure and wrong costs. The penalty keeps the weights small, the boundary
    # smooth, and a band of doubt along it where the classes overlap.
    shown = DecisionBoundaryDisplay.from_estimator(
        model, X, response_method="predict_proba", grid_resolution=200, eps=0.3, ax=ax,
        plot_method="contourf", levels=20, cmap="RdBu", vmin=0, vmax=1, alpha=0.7,
    )  # fmt: skip
    ax.contour(shown.xx0, shown.xx1, shown.response, levels=[0.5], colors="black", linewidths=1)
    ax.scatter(*X.T, c=y, cmap=ListedColormap(["firebrick", "royalblue"]), edgecolors="white")

    facts = (
        f"accuracy {model.score(X, y):.2f}, on new data {model.score(X_test, y_test):.2f}",
        f"log loss on new data {log_loss(y_test, model.predict_proba(X_test)):.2f}",
    )
    ax.set_title("\n".join([name, *facts]), fontsize="medium")
    print(f"{name}: {', '.join(facts)}")

bar = figure.colorbar(shown.surface_, ax=panels, pad=0.01, ticks=[0, 0.25, 0.5, 0.75, 1])
bar.set_label("probability of blue")
path.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(path, dpi=120)
print(f"drawn to {path}")
