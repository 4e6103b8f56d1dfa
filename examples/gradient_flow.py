"""Why deep sigmoid networks hardly learn: gradients that vanish, beside healthy ones.

Two networks of ten layers see the same data; only the activation differs.
"""

import sys
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into files, needs no screen
from matplotlib import pyplot
from sklearn.datasets import make_moons
from sklearn.exceptions import ConvergenceWarning

from xpmlp import GradientFlowDisplay, GradientNorms, MLPClassifier

path = Path(sys.argv[1] if len(sys.argv) > 1 else "out/gradient_flow.png")
X, y = make_moons(500, noise=0.1, random_state=0)
figure, panels = pyplot.subplots(1, 2, figsize=(9, 4), sharey=True, layout="constrained")

for ax, activation in zip(panels, ["logistic", "relu"], strict=True):
    norms = GradientNorms()
    model = MLPClassifier(
        [32] * 9,  # and the output layer
        activation,
        alpha=0,  # the penalty's gradient would hide how small the loss's is
        batch_size=500,
        learning_rate_init=0.003,
        max_iter=60,
        n_iter_no_change=60,
        random_state=0,
        callbacks=[norms],
    )
    with warnings.catch_warnings():
        # Sixty epochs are for the picture; the sigmoid network would not converge in any number.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, y)

    # The backward pass multiplies by the sigmoid's derivative, at most 1/4, in every layer, and by
    # weights. From the bright line, the output, to the dark one, the input, nothing is left of the
    # gradient: the first layers stay as they were drawn. ReLU's derivative is 1 where it is on.
    GradientFlowDisplay.from_estimator(model, ax=ax, colorbar=ax is panels[-1])
    ax.set_title(f"{activation}: accuracy {model.score(X, y):.2f}")

    first, last = norms.norms[0][0], norms.norms[0][-1]
    print(f"{activation}: first to last layer's gradient after one epoch {first / last:.1e}")

panels[1].set_ylabel("")
path.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(path, dpi=120)
print(f"drawn to {path}")
