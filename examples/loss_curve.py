"""When to stop: the loss of the training data falls on, that of unseen data turns round.

The same network learns sixty noisy points, without dropout and with it.
"""

import sys
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into files, needs no screen
from matplotlib import pyplot
from sklearn.datasets import make_moons
from sklearn.exceptions import ConvergenceWarning

from xpmlp import LossCurveDisplay, MLPClassifier

path = Path(sys.argv[1] if len(sys.argv) > 1 else "out/loss_curve.png")
X, y = make_moons(60, noise=0.3, random_state=0)
X_val, y_val = make_moons(1000, noise=0.3, random_state=1)
figure, panels = pyplot.subplots(1, 2, figsize=(10, 4.4), sharey=True, layout="constrained")

for ax, dropout in zip(panels, [0.0, 0.5], strict=True):
    model = MLPClassifier(
        (64, 64),
        dropout=[0.0, dropout, dropout],  # never of the two inputs
        learning_rate_init=0.01,
        max_iter=300,
        n_iter_no_change=300,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # three hundred epochs, come what may
        model.fit(X, y, X_val=X_val, y_val=y_val)

    # Look for the epoch where val_loss is lowest. From there on the network learns this sample's
    # noise: `loss` goes on falling, and what is gained on it is lost on new data. With dropout that
    # begins later and costs far less. The scores hardly show it: the loss is what to watch.
    LossCurveDisplay.from_estimator(model, ax=ax)
    ax.set_title(f"dropout {dropout:g}", pad=28)  # above the legend

    curve = model.history_["val_loss"]
    best = min(range(len(curve)), key=curve.__getitem__)
    print(
        f"dropout {dropout:g}: val_loss is lowest, {curve[best]:.3f}, in epoch {best + 1}, "
        f"and {curve[-1]:.3f} in the last"
    )

path.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(path, dpi=120)
print(f"drawn to {path}")
