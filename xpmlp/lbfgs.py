"""L-BFGS-B by SciPy on the flat parameter vector: full batches, no learning rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xpmlp import rules
from xpmlp.backends import sum_of
from xpmlp.network import Network
from xpmlp.program import Objectives
from xpmlp.step import Dataset

# Elements of the widest buffer. The objective is summed over blocks of rows, so that memory is
# bounded by it and not by the rows of X.
_BLOCK_ELEMENTS = 1 << 22


class FullBatch:
    """Objective and gradient over all samples, as functions of a float64 vector on the host.

    ``J = sum w loss / sum w + alpha / (2 sum w) sum W**2``, where w = 1 without sample weights.

    Parameters
    ----------
    network : Network
        Holds the parameters of the newest evaluation.
    data : Dataset
    alpha : float
    """

    def __init__(self, network: Network, data: Dataset, alpha: float) -> None:
        self.network, self.data, self.alpha = network, data, float(alpha)
        backend, policy = network.backend, network.policy
        widest = max(network.n_features, *(layer.units for layer in network.dense))
        self.n_rows = min(data.n_samples, max(64, _BLOCK_ELEMENTS // widest))
        self.part = backend.zeros((network.n_parameters,), policy.parameter)
        self.grad = backend.zeros((network.n_parameters,), policy.parameter)
        self.squares = backend.empty((), policy.accumulate)
        self.objectives = Objectives(
            network,
            self.n_rows,
            data.chosen_loss,
            self.part,
            mean=False,
            labels=data.labels,
            weighted=data.weight is not None,
        )
        self.total_weight = float(data.n_samples)
        if data.weight is not None:
            self.total_weight = sum_of(backend, data.weight, policy.accumulate)

    def __call__(self, theta: Any) -> tuple[float, Any]:
        """The objective and its gradient at `theta`, a NumPy array of shape (n_parameters,)."""
        network, backend = self.network, self.network.backend
        backend.copy(backend.from_host(theta), network.parameters)
        total = 0.0
        for number, objective in enumerate(self.data.sweep(self.objectives, self.n_rows)):
            total += backend.read(objective.forward())
            objective.backward()
            if number == 0:
                backend.copy(self.part, self.grad)
            else:
                backend.elementwise(rules.add)((self.grad,), self.grad, self.part)
        weights = network.parameters[: network.n_weights]
        grad_weights = self.grad[: network.n_weights]
        if self.alpha:
            backend.total_squares(weights, self.squares)
            total += 0.5 * self.alpha * backend.read(self.squares)
            backend.elementwise(rules.add_l2_gradient)(
                (grad_weights,), grad_weights, weights, self.alpha
            )
        gradient = backend.to_host(self.grad).astype("float64")
        return total / self.total_weight, gradient / self.total_weight


def solve(
    objective: FullBatch,
    *,
    max_iter: int,
    max_fun: int,
    tol: float,
    callback: Callable[[float], None],
) -> Any:
    """Minimise in place of the network's parameters.

    Parameters
    ----------
    objective : FullBatch
    max_iter, max_fun : int
        Iterations and evaluations at most.
    tol : float
        Ends where no component of the gradient is larger.
    callback : callable
        Given the objective after each iteration.

    Returns
    -------
    scipy.optimize.OptimizeResult
    """
    from scipy.optimize import minimize

    network = objective.network
    with network.backend.context():
        start = network.backend.to_host(network.parameters).astype("float64")

        def report(intermediate_result: Any) -> None:
            callback(float(intermediate_result.fun))

        found = minimize(
            objective,
            start,
            method="L-BFGS-B",
            jac=True,
            callback=report,
            options={"maxfun": max_fun, "maxiter": max_iter, "gtol": tol},
        )
        network.backend.copy(network.backend.from_host(found.x), network.parameters)
    return found
