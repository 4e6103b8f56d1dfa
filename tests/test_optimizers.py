"""One table of optimizers, against PyTorch, against formulas in plain floats, and their contract.

``weight_decay`` is decoupled in every optimizer here. PyTorch's is the gradient of a penalty,
except in AdamW; so that is the only row with decay that is compared with PyTorch.
"""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pytest
from conftest import BACKENDS

from xpmlp import DeviceFallbackWarning, available_backends
from xpmlp.backends import Backend, dtype_name, host
from xpmlp.optimizers import (
    FLUSH_EVERY,
    OPTIMIZERS,
    SGD,
    AdaDelta,
    AdaGrad,
    Adam,
    AdaMax,
    AdamW,
    NAdam,
    Optimizer,
    OptimizerState,
    RMSprop,
)
from xpmlp.schedules import Cosine, InvScaling

N_STEPS = 100
N_ELEMENTS = 12

# --- The formulas, one element at a time: rule(o, memory, t, rate, p, g) -> p, with t from 1 ----


def sgd(o: SGD, memory: dict[str, float], t: int, rate: float, p: float, g: float) -> float:
    if o.rate_in_velocity:
        v = memory["v"] = o.momentum * memory.get("v", 0.0) - rate * g
        return p + (o.momentum * v - rate * g if o.nesterov else v)
    gain = 1.0 if t == 1 else 1.0 - o.dampening
    v = memory["v"] = o.momentum * memory.get("v", 0.0) + gain * g
    return p - rate * (g + o.momentum * v if o.nesterov else v)


def adagrad(o: AdaGrad, memory: dict[str, float], t: int, rate: float, p: float, g: float) -> float:
    s = memory["s"] = memory.get("s", 0.0) + g**2
    return p - rate * g / (math.sqrt(s) + o.epsilon)


def adadelta(
    o: AdaDelta, memory: dict[str, float], t: int, rate: float, p: float, g: float
) -> float:
    u = memory.get("u", 0.0)
    s = memory["s"] = o.rho * memory.get("s", 0.0) + (1 - o.rho) * g**2
    delta = -math.sqrt(u + o.epsilon) / math.sqrt(s + o.epsilon) * g
    memory["u"] = o.rho * u + (1 - o.rho) * delta**2
    return p + rate * delta


def rmsprop(o: RMSprop, memory: dict[str, float], t: int, rate: float, p: float, g: float) -> float:
    s = memory["s"] = o.rho * memory.get("s", 0.0) + (1 - o.rho) * g**2
    c = memory["c"] = o.rho * memory.get("c", 0.0) + (1 - o.rho) * g
    root = math.sqrt(s - c**2 if o.centered else s)
    v = memory["v"] = o.momentum * memory.get("v", 0.0) + g / (root + o.epsilon)
    return p - rate * v


def moments(o: Any, memory: dict[str, float], g: float) -> tuple[float, float]:
    m = memory["m"] = o.beta_1 * memory.get("m", 0.0) + (1 - o.beta_1) * g
    v = memory["v"] = o.beta_2 * memory.get("v", 0.0) + (1 - o.beta_2) * g**2
    return m, v


def adam(o: Adam, memory: dict[str, float], t: int, rate: float, p: float, g: float) -> float:
    m, v = moments(o, memory, g)
    if o.amsgrad:
        v = memory["largest"] = max(memory.get("largest", 0.0), v)
    if o.epsilon_hat:
        corrected = rate * math.sqrt(1 - o.beta_2**t) / (1 - o.beta_1**t)
        return p - corrected * m / (math.sqrt(v) + o.epsilon)
    m_hat, v_hat = m / (1 - o.beta_1**t), v / (1 - o.beta_2**t)
    return p - rate * m_hat / (math.sqrt(v_hat) + o.epsilon)


def nadam(o: NAdam, memory: dict[str, float], t: int, rate: float, p: float, g: float) -> float:
    mu = [o.beta_1 * (1 - 0.5 * 0.96 ** (i * o.momentum_decay)) for i in range(1, t + 2)]
    m, v = moments(o, memory, g)
    ahead = (1 - mu[t - 1]) / (1 - math.prod(mu[:t])) * g + mu[t] / (1 - math.prod(mu)) * m
    return p - rate * ahead / (math.sqrt(v / (1 - o.beta_2**t)) + o.epsilon)


def adamax(o: AdaMax, memory: dict[str, float], t: int, rate: float, p: float, g: float) -> float:
    m = memory["m"] = o.beta_1 * memory.get("m", 0.0) + (1 - o.beta_1) * g
    u = memory["u"] = max(o.beta_2 * memory.get("u", 0.0), abs(g) + o.epsilon)
    return p - rate / (1 - o.beta_1**t) * m / u


# --- The table ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """An optimizer, its formula, and PyTorch's name and arguments for it where it has them.

    `fast` is a learning rate that suits the quadratic of :func:`test_minimises_a_quadratic`.
    """

    optimizer: Any
    formula: Callable[..., float]
    torch: tuple[str, dict[str, Any]] | None = None
    fast: float = 0.1


CASES = {
    "sgd": Case(SGD(), sgd, ("SGD", {"lr": 0.01})),
    "sgd momentum": Case(
        SGD(learning_rate=0.02, momentum=0.9), sgd, ("SGD", {"lr": 0.02, "momentum": 0.9})
    ),
    "sgd dampening": Case(
        SGD(momentum=0.9, dampening=0.4),
        sgd,
        ("SGD", {"lr": 0.01, "momentum": 0.9, "dampening": 0.4}),
    ),
    "sgd averaged": Case(
        SGD(momentum=0.8, dampening=0.8),
        sgd,
        ("SGD", {"lr": 0.01, "momentum": 0.8, "dampening": 0.8}),
    ),
    "sgd nesterov": Case(
        SGD(momentum=0.9, nesterov=True),
        sgd,
        ("SGD", {"lr": 0.01, "momentum": 0.9, "nesterov": True}),
    ),
    "sgd momentum 1": Case(
        SGD(learning_rate=InvScaling(0.1), momentum=1.0), sgd, ("SGD", {"momentum": 1.0})
    ),
    "sgd rate in velocity": Case(SGD(momentum=0.9, rate_in_velocity=True), sgd),
    "sgd rate in velocity, schedule": Case(
        SGD(learning_rate=Cosine(0.1, n_steps=80), momentum=0.9, rate_in_velocity=True), sgd
    ),
    "sgd rate in velocity, momentum 1": Case(
        SGD(learning_rate=InvScaling(0.1), momentum=1.0, rate_in_velocity=True), sgd
    ),
    "sgd rate in velocity, nesterov": Case(
        SGD(momentum=0.9, nesterov=True, rate_in_velocity=True), sgd
    ),
    "sgd rate in velocity, nesterov schedule": Case(
        SGD(InvScaling(0.1), momentum=0.8, nesterov=True, rate_in_velocity=True), sgd
    ),
    "sgd rate in velocity, decay": Case(
        SGD(momentum=0.9, rate_in_velocity=True, weight_decay=0.3), sgd
    ),
    "sgd decay": Case(SGD(weight_decay=0.3), sgd),
    "sgd schedule": Case(SGD(learning_rate=InvScaling(0.1)), sgd, ("SGD", {})),
    "adagrad": Case(AdaGrad(), adagrad, ("Adagrad", {"lr": 0.01}), fast=0.5),
    "adagrad epsilon": Case(
        AdaGrad(learning_rate=0.1, epsilon=1e-3),
        adagrad,
        ("Adagrad", {"lr": 0.1, "eps": 1e-3}),
        0.5,
    ),
    "adagrad decay": Case(AdaGrad(weight_decay=0.2), adagrad),
    "adadelta": Case(AdaDelta(), adadelta, ("Adadelta", {"lr": 1.0}), fast=1.0),
    "adadelta options": Case(
        AdaDelta(learning_rate=0.5, rho=0.95, epsilon=1e-4),
        adadelta,
        ("Adadelta", {"lr": 0.5, "rho": 0.95, "eps": 1e-4}),
        fast=1.0,
    ),
    "adadelta decay": Case(AdaDelta(weight_decay=0.01), adadelta),
    "rmsprop": Case(RMSprop(), rmsprop, ("RMSprop", {"lr": 0.001}), fast=0.005),
    "rmsprop options": Case(
        RMSprop(learning_rate=0.01, rho=0.9, epsilon=1e-4),
        rmsprop,
        ("RMSprop", {"lr": 0.01, "alpha": 0.9, "eps": 1e-4}),
        fast=0.005,
    ),
    "rmsprop momentum": Case(
        RMSprop(momentum=0.9), rmsprop, ("RMSprop", {"lr": 0.001, "momentum": 0.9}), fast=0.001
    ),
    "rmsprop centered": Case(
        RMSprop(centered=True), rmsprop, ("RMSprop", {"lr": 0.001, "centered": True}), fast=0.005
    ),
    "rmsprop centered momentum": Case(
        RMSprop(centered=True, momentum=0.8),
        rmsprop,
        ("RMSprop", {"lr": 0.001, "centered": True, "momentum": 0.8}),
        fast=0.001,
    ),
    "rmsprop decay": Case(RMSprop(centered=True, momentum=0.5, weight_decay=0.1), rmsprop),
    "adam": Case(Adam(), adam, ("Adam", {"lr": 0.001})),
    "adam options": Case(
        Adam(learning_rate=0.05, beta_1=0.8, beta_2=0.95, epsilon=1e-3),
        adam,
        ("Adam", {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-3}),
    ),
    "adam without memory": Case(
        Adam(beta_1=0.0, beta_2=0.0), adam, ("Adam", {"lr": 0.001, "betas": (0.0, 0.0)}), fast=0.001
    ),
    "adam amsgrad": Case(Adam(amsgrad=True), adam, ("Adam", {"lr": 0.001, "amsgrad": True})),
    "adam epsilon hat": Case(Adam(epsilon=1e-3, epsilon_hat=True), adam),
    "adam epsilon hat, options": Case(
        Adam(learning_rate=0.05, beta_1=0.8, beta_2=0.95, epsilon=0.1, epsilon_hat=True), adam
    ),
    "adam epsilon hat, schedule": Case(
        Adam(learning_rate=Cosine(0.1, n_steps=80), epsilon=1e-2, epsilon_hat=True), adam
    ),
    "adam epsilon hat, amsgrad": Case(Adam(epsilon=1e-3, amsgrad=True, epsilon_hat=True), adam),
    "adam decay": Case(Adam(weight_decay=0.1), adam),
    "adam schedule": Case(Adam(learning_rate=Cosine(0.1, n_steps=80)), adam, ("Adam", {})),
    "adamw": Case(AdamW(), adam, ("AdamW", {"lr": 0.001, "weight_decay": 0.01})),
    "adamw options": Case(
        AdamW(learning_rate=0.01, weight_decay=0.3, amsgrad=True),
        adam,
        ("AdamW", {"lr": 0.01, "weight_decay": 0.3, "amsgrad": True}),
    ),
    "adamw schedule": Case(
        AdamW(learning_rate=Cosine(0.1, n_steps=80), weight_decay=0.2),
        adam,
        ("AdamW", {"weight_decay": 0.2}),
    ),
    "adamw epsilon hat": Case(
        AdamW(learning_rate=0.01, weight_decay=0.3, epsilon=1e-2, epsilon_hat=True), adam
    ),
    "nadam": Case(NAdam(), nadam, ("NAdam", {"lr": 0.002})),
    "nadam options": Case(
        NAdam(learning_rate=0.01, beta_1=0.85, beta_2=0.99, momentum_decay=0.02),
        nadam,
        ("NAdam", {"lr": 0.01, "betas": (0.85, 0.99), "momentum_decay": 0.02}),
    ),
    "nadam decay": Case(NAdam(weight_decay=0.1), nadam),
    "adamax": Case(AdaMax(), adamax, ("Adamax", {"lr": 0.002})),
    "adamax options": Case(
        AdaMax(learning_rate=0.01, beta_1=0.7, beta_2=0.9, epsilon=1e-2),
        adamax,
        ("Adamax", {"lr": 0.01, "betas": (0.7, 0.9), "eps": 1e-2}),
    ),
    "adamax decay": Case(AdaMax(weight_decay=0.1), adamax),
}
IN_TORCH = {name: case for name, case in CASES.items() if case.torch}
WITHOUT_DECAY = {
    name: case
    for name, case in CASES.items()
    if not case.optimizer.weight_decay and not callable(case.optimizer.learning_rate)
}

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def start() -> np.ndarray:
    return np.random.default_rng(1).normal(size=N_ELEMENTS)


def random_gradients(n_steps: int = N_STEPS) -> np.ndarray:
    """Gradients over six orders of magnitude; element 0 never has one, element 1 rarely."""
    rng = np.random.default_rng(2)
    size = 10.0 ** rng.uniform(-4, 2, N_ELEMENTS)
    gradients = rng.normal(size=(n_steps, N_ELEMENTS)) * size
    gradients[:, 0] = 0.0
    gradients[np.arange(n_steps) % 7 != 3, 1] = 0.0
    return gradients


def quadratic() -> tuple[np.ndarray, np.ndarray]:
    """A symmetric matrix with eigenvalues from 0.1 to 2, and a minimum."""
    rng = np.random.default_rng(3)
    basis, _ = np.linalg.qr(rng.normal(size=(N_ELEMENTS, N_ELEMENTS)))
    return basis * np.linspace(0.1, 2.0, N_ELEMENTS) @ basis.T, rng.normal(size=N_ELEMENTS)


def rate_of(optimizer: Optimizer, step: int) -> float:
    rate = optimizer.learning_rate
    return rate(step) if callable(rate) else rate


def run(
    backend: Backend,
    optimizer: Optimizer,
    gradients: np.ndarray,
    dtype: str = "float64",
    n_decayed: int | None = None,
) -> tuple[Any, Any]:
    """theta and the state after one update for each of `gradients`, from :func:`start`."""
    with backend.context():
        theta = backend.from_host(start().astype(dtype))
        state = optimizer.init(theta, n_decayed, backend)
        for gradient in gradients:
            optimizer.update(theta, backend.from_host(gradient.astype(dtype)), state)
    return theta, state


# --- Values -------------------------------------------------------------------------------------


def test_the_table_has_every_optimizer():
    assert {type(case.optimizer) for case in CASES.values()} == set(OPTIMIZERS.values())
    assert all(name == cls.name for name, cls in OPTIMIZERS.items())


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch")
    # PyTorch keeps NAdam's product of momentum coefficients in the default dtype.
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield torch
    torch.set_default_dtype(default)


@pytest.mark.parametrize("source", ["random", "quadratic"])
@pytest.mark.parametrize("case", IN_TORCH.values(), ids=IN_TORCH)
def test_equals_torch(case, source, torch):
    name, arguments = case.torch
    sequence = random_gradients()
    matrix, minimum = quadratic()
    backend = host()
    ours = start()
    theirs = torch.tensor(start(), requires_grad=True)
    state = case.optimizer.init(ours)
    other = getattr(torch.optim, name)([theirs], **arguments)
    for step in range(N_STEPS):
        if source == "random":
            gradient = sequence[step].copy()
            theirs.grad = torch.tensor(sequence[step])
        else:
            gradient = matrix @ (ours - minimum)
            theirs.grad = torch.tensor(matrix @ (theirs.detach().numpy() - minimum))
        if callable(case.optimizer.learning_rate):
            other.param_groups[0]["lr"] = case.optimizer.learning_rate(step)
        with backend.context():
            case.optimizer.update(ours, gradient, state)
        other.step()
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-10, atol=1e-14)


@each_case
def test_equals_the_formula(case, backend):
    o, sequence = case.optimizer, random_gradients()
    expected = []
    for element, p in enumerate(start().tolist()):
        memory: dict[str, float] = {}
        for step, g in enumerate(sequence[:, element].tolist()):
            rate = rate_of(o, step)
            p = case.formula(o, memory, step + 1, rate, p - rate * o.weight_decay * p, g)
        expected.append(p)
    theta, _ = run(backend, o, sequence)
    np.testing.assert_allclose(backend.to_host(theta), expected, rtol=1e-11, atol=1e-13)


LIKE_SCIKIT_LEARN = {
    "sgd": (SGD(0.02, momentum=0.9, rate_in_velocity=True), {"nesterov": False}),
    "sgd momentum 1": (SGD(0.02, momentum=1.0, rate_in_velocity=True), {"nesterov": False}),
    "sgd nesterov": (SGD(0.02, momentum=0.9, nesterov=True, rate_in_velocity=True), {}),
    "adam": (Adam(0.02, epsilon=1e-3, epsilon_hat=True), {}),
    "adam options": (Adam(0.02, beta_1=0.7, beta_2=0.9, epsilon=0.1, epsilon_hat=True), {}),
}


@pytest.mark.parametrize(
    ("optimizer", "options"), LIKE_SCIKIT_LEARN.values(), ids=LIKE_SCIKIT_LEARN
)
def test_equals_scikit_learn(optimizer, options, backend):
    theirs = pytest.importorskip("sklearn.neural_network._stochastic_optimizers")
    expected, names = start(), ("momentum",)
    kind = theirs.SGDOptimizer
    if isinstance(optimizer, Adam):
        kind, names = theirs.AdamOptimizer, ("beta_1", "beta_2", "epsilon")
    options = {**options, **{name: getattr(optimizer, name) for name in names}}
    other = kind([expected], learning_rate_init=0.02, **options)
    for gradient in random_gradients():
        other.update_params([expected], [gradient])
    theta, _ = run(backend, optimizer, random_gradients())
    np.testing.assert_allclose(backend.to_host(theta), expected, rtol=1e-11, atol=1e-13)


def test_the_rate_in_the_velocity_counts_only_where_the_rate_changes(backend):
    for nesterov in (False, True):
        for rate, same in ((0.02, True), (InvScaling(0.02), False)):
            ends = []
            for rate_in_velocity in (False, True):
                optimizer = SGD(
                    rate, momentum=0.9, nesterov=nesterov, rate_in_velocity=rate_in_velocity
                )
                theta, _ = run(backend, optimizer, random_gradients(30))
                ends.append(backend.to_host(theta))
            assert np.allclose(ends[0], ends[1], rtol=1e-12, atol=1e-13) is same


def test_an_old_gradient_keeps_the_rate_of_its_own_step(backend):
    gradients = np.zeros((3, N_ELEMENTS))
    gradients[0] = 1.0
    rates = [0.5, 0.0, 0.0].__getitem__
    scaled, _ = run(backend, SGD(rates, momentum=0.5, rate_in_velocity=True), gradients)
    plain, _ = run(backend, SGD(rates, momentum=0.5), gradients)
    np.testing.assert_allclose(backend.to_host(scaled), start() - 0.5 * (1 + 0.5 + 0.25))
    np.testing.assert_allclose(backend.to_host(plain), start() - 0.5)


def test_epsilon_hat_brakes_the_first_step_harder(backend):
    # Next to it every sqrt(v) vanishes, so that it alone divides: with the correction of v, or not.
    gradient = np.full((1, N_ELEMENTS), 1e-3)
    corrected, _ = run(backend, Adam(0.1, epsilon=1e3), gradient)
    moved = start() - backend.to_host(corrected)
    hat, _ = run(backend, Adam(0.1, epsilon=1e3, epsilon_hat=True), gradient)
    ratio = (start() - backend.to_host(hat)) / moved
    np.testing.assert_allclose(ratio, math.sqrt(1 - 0.999), rtol=1e-4)


@each_case
def test_float32_stays_float32(case, backend):
    gradients = random_gradients(40)
    theta, state = run(backend, case.optimizer, gradients, "float32")
    assert {dtype_name(x) for x in (theta, *state.slots.values())} == {"float32"}
    exact, _ = run(backend, case.optimizer, gradients)
    np.testing.assert_allclose(backend.to_host(theta), backend.to_host(exact), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("case", WITHOUT_DECAY.values(), ids=WITHOUT_DECAY)
def test_minimises_a_quadratic(case):
    matrix, minimum = quadratic()

    def value(theta):
        return 0.5 * (theta - minimum) @ matrix @ (theta - minimum)

    optimizer = replace(case.optimizer, learning_rate=case.fast)
    theta = start()
    state = optimizer.init(theta)
    for _ in range(2500):
        optimizer.update(theta, matrix @ (theta - minimum), state)
    assert value(theta) < 1e-3 * value(start())


def test_the_first_step_of_the_adaptive_methods_has_the_size_of_the_rate(backend):
    # m / sqrt(v) is then the sign of the gradient, whatever the gradient's size.
    gradient = np.array([[1e-3, -5.0, 2e4] * 4])
    for optimizer in (Adam(epsilon=0.0), AdaMax(learning_rate=0.001, epsilon=0.0), AdaGrad()):
        theta, _ = run(backend, optimizer, gradient)
        expected = start() - optimizer.learning_rate * np.sign(gradient[0])
        np.testing.assert_allclose(backend.to_host(theta), expected, rtol=1e-6)


def test_adamax_takes_the_maximum_of_each_element(backend):
    # One of the documents takes the norm of the whole gradient: a large element would slow all.
    gradients = np.full((3, N_ELEMENTS), 0.5)
    alone, _ = run(backend, AdaMax(), gradients)
    gradients[:, -1] = 1e6
    beside, _ = run(backend, AdaMax(), gradients)
    assert backend.to_host(alone)[:-1].tolist() == backend.to_host(beside)[:-1].tolist()


def test_averaged_momentum_of_a_constant_gradient_is_the_gradient(backend):
    gradients = np.ones((20, N_ELEMENTS))
    theta, state = run(backend, SGD(momentum=0.9, dampening=0.9), gradients)
    np.testing.assert_allclose(backend.to_host(state.slots["velocity"]), 1.0, rtol=1e-14)
    np.testing.assert_allclose(backend.to_host(theta), start() - 20 * 0.01, rtol=1e-13)


def test_adam_moves_as_far_for_small_gradients_as_for_large(backend):
    # Without epsilon only the signs of gradients count, as long as their squares are normal
    # numbers; 1e-17 squared and weighted still is one in float32.
    sizes = np.geomspace(1e-17, 1e15, N_ELEMENTS)
    for optimizer in (Adam(epsilon=0.0), Adam(epsilon=0.0, amsgrad=True), NAdam(epsilon=0.0)):
        theta, _ = run(backend, optimizer, np.tile(sizes, (150, 1)), "float32")
        moved = start() - backend.to_host(theta)
        np.testing.assert_allclose(moved, moved[-1], rtol=1e-4, err_msg=optimizer.name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["sgd momentum", "adam", "nadam", "adamax", "sgd dampening"])
def test_a_gradient_that_stops_leaves_no_subnormal_state(name, dtype):
    # On such numbers a CPU is slower by an order of magnitude; they are looked for at times.
    optimizer, backend = CASES[name].optimizer, host()
    theta = start().astype(dtype)
    state = optimizer.init(theta)
    smallest = np.finfo(dtype).smallest_normal
    first = next(iter(state.slots.values()))  # the one with the momentum
    for step in range(8000 if dtype == "float64" else 1500):
        optimizer.update(theta, np.full(N_ELEMENTS, float(step == 0), dtype), state)
        if state.step % FLUSH_EVERY == 0:
            assert first[0] == 0 or abs(first[0]) >= smallest
    assert (backend.to_host(first) == 0).all()
    assert np.isfinite(theta).all()


def test_arguments_in_their_usual_order():
    assert Adam(0.05, 0.9, 0.99) == Adam(learning_rate=0.05, beta_1=0.9, beta_2=0.99)
    assert AdamW(0.05, 0.8) == AdamW(learning_rate=0.05, beta_1=0.8, weight_decay=0.01)
    assert SGD(0.1, 0.9) == SGD(learning_rate=0.1, momentum=0.9)
    assert RMSprop(0.1, 0.95) == RMSprop(learning_rate=0.1, rho=0.95)


# --- Contract -----------------------------------------------------------------------------------


@each_case
def test_updates_in_place(case, backend):
    with backend.context():
        theta = backend.from_host(start())
        view = theta[2:5]
        grad = backend.from_host(random_gradients(1)[0] + 1.0)
        before = backend.to_host(grad).copy()
        state = case.optimizer.init(theta, backend=backend)
        slots = dict(state.slots)
        assert case.optimizer.update(theta, grad, state) is None
    moved = backend.to_host(theta)
    assert (moved != start()).all()
    assert backend.to_host(view).tolist() == moved[2:5].tolist()
    assert backend.to_host(grad).tobytes() == before.tobytes()
    assert all(state.slots[name] is slot for name, slot in slots.items())


@each_case
def test_the_state_counts_on(case, backend):
    gradients = random_gradients(20)
    theta, state = run(backend, case.optimizer, gradients)
    assert state.step == 20

    other = backend.from_host(start())
    resumed = case.optimizer.init(other, backend=backend)
    assert resumed.step == 0
    assert all((backend.to_host(slot) == 0).all() for slot in resumed.slots.values())
    with backend.context():
        for part in (gradients[:7], gradients[7:]):
            count = resumed.step
            for gradient in part:
                case.optimizer.update(other, backend.from_host(gradient), resumed)
            assert resumed.step == count + len(part)
    assert backend.to_host(other).tolist() == backend.to_host(theta).tolist()

    # The optimizer itself remembers nothing, so a second run is the first again.
    again, _ = run(backend, case.optimizer, gradients)
    assert backend.to_host(again).tolist() == backend.to_host(theta).tolist()


@each_case
def test_a_state_goes_on_from_a_pickle(case, backend):
    gradients = random_gradients(20)
    expected, _ = run(backend, case.optimizer, gradients)
    theta, state = run(backend, case.optimizer, gradients[:7])
    opened = reopened(state)
    assert opened.backend.name in available_backends()
    opened = opened.on(backend)
    assert (opened.step, opened.n_decayed, opened.tiny) == (7, N_ELEMENTS, state.tiny)
    with backend.context():
        for gradient in gradients[7:]:
            case.optimizer.update(theta, backend.from_host(gradient), opened)
    assert backend.to_host(theta).tolist() == backend.to_host(expected).tolist()
    assert state.step == 7


def reopened(state: OptimizerState) -> OptimizerState:
    """The state from its pickle; on the CPU with a warning where its adapter is not installed."""
    pickled = pickle.dumps(state)
    if state.backend.name in available_backends():
        opened = pickle.loads(pickled)
        assert opened.backend is state.backend
        return opened
    with pytest.warns(DeviceFallbackWarning, match="'array-api-strict' is not installed"):
        opened = pickle.loads(pickled)
    assert opened.backend is host()
    return opened


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("place", BACKENDS.values(), ids=BACKENDS)
def test_a_state_moves_to_another_device(place, dtype, backend):
    optimizer = NAdam(weight_decay=0.1)
    theta, state = run(backend, optimizer, random_gradients(7), dtype, n_decayed=5)
    before = {name: backend.to_host(slot).copy() for name, slot in state.slots.items()}
    moved = state.on(place)
    assert moved.backend is place
    assert (moved.step, moved.n_decayed, moved.mu_product) == (7, 5, state.mu_product)
    assert list(moved.slots) == ["m", "v"]
    for name, slot in moved.slots.items():
        assert place.owns(slot)
        assert dtype_name(slot) == dtype
        assert place.to_host(slot).tolist() == before[name].tolist()
    with place.context():
        there = place.from_host(backend.to_host(theta))
        optimizer.update(there, place.from_host(random_gradients(1)[0].astype(dtype)), moved)
    assert (moved.step, state.step) == (8, 7)
    for name, slot in state.slots.items():
        assert backend.to_host(slot).tolist() == before[name].tolist()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_of_a_state_stays_on_its_device(copied, backend):
    _, state = run(backend, Adam(), random_gradients(3))
    twin = copied(state)
    assert twin.backend is backend
    assert all(backend.owns(slot) for slot in twin.slots.values())


def test_slots_have_the_shape_and_place_of_theta(backend):
    theta = backend.zeros((5,), "float32")
    state = Adam(amsgrad=True).init(theta)
    assert list(state.slots) == ["m", "v", "v_max"]
    assert all(slot.shape == (5,) and backend.owns(slot) for slot in state.slots.values())
    assert SGD().init(theta).slots == {}


def test_a_schedule_is_asked_with_the_finished_updates(backend):
    asked = []

    def schedule(step):
        asked.append(step)
        return np.float64(0.1)  # a NumPy number is a number

    run(backend, SGD(learning_rate=schedule), random_gradients(4))
    assert asked == [0, 1, 2, 3]


def test_learning_rate_zero_moves_nothing(backend):
    for case in CASES.values():
        theta, _ = run(backend, replace(case.optimizer, learning_rate=0), random_gradients(3))
        assert backend.to_host(theta).tolist() == start().tolist()


@pytest.mark.parametrize("n_decayed", [None, N_ELEMENTS, 5, 1, 0])
@pytest.mark.parametrize("cls", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_weight_decay_leaves_the_tail_alone(cls, n_decayed, backend):
    # Without a gradient the decay is all that moves theta.
    optimizer = cls(learning_rate=0.5, weight_decay=0.2)
    theta, _ = run(backend, optimizer, np.zeros((10, N_ELEMENTS)), n_decayed=n_decayed)
    count = N_ELEMENTS if n_decayed is None else n_decayed
    moved = backend.to_host(theta)
    np.testing.assert_allclose(moved[:count], start()[:count] * 0.9**10, rtol=1e-14)
    assert moved[count:].tolist() == start()[count:].tolist()


def test_weight_decay_follows_the_schedule(backend):
    optimizer = SGD(learning_rate=lambda step: 0.5 / (step + 1), weight_decay=1.0)
    theta, _ = run(backend, optimizer, np.zeros((3, N_ELEMENTS)))
    expected = start() * (1 - 0.5) * (1 - 0.25) * (1 - 0.5 / 3)
    np.testing.assert_allclose(backend.to_host(theta), expected, rtol=1e-14)


def test_only_adamw_decays_by_default():
    assert {name for name, cls in OPTIMIZERS.items() if cls().weight_decay} == {"adamw"}


# --- Arguments ----------------------------------------------------------------------------------

# Option -> values outside its interval.
OUTSIDE = {
    "learning_rate": [-1e-3],
    "weight_decay": [-0.1],
    "momentum": [-0.1, 1.5],
    "dampening": [-0.1, 1.1],
    "epsilon": [-1e-8],
    "rho": [-0.1, 1.0, 2],
    "beta_1": [-0.1, 1.0, 1.1],
    "beta_2": [-0.1, 1.0, 1.1],
    "momentum_decay": [-0.1],
}
FLAGS = {"nesterov", "rate_in_velocity", "centered", "amsgrad", "epsilon_hat"}
OPTIONS = [
    pytest.param(cls, field.name, id=f"{name}-{field.name}")
    for name, cls in OPTIMIZERS.items()
    for field in fields(cls)
]
NUMBERS = [param for param in OPTIONS if param.values[1] not in FLAGS]


def companions(option: str) -> dict[str, Any]:
    """What has to be given with an option for the option to be what is wrong."""
    return {"momentum": 0.9} if option in ("dampening", "nesterov", "rate_in_velocity") else {}


def test_the_tables_of_arguments_are_complete():
    assert {param.values[1] for param in OPTIONS} == OUTSIDE.keys() | FLAGS


@pytest.mark.parametrize(("cls", "option"), NUMBERS)
def test_a_number_out_of_range_is_named(cls, option):
    for value in (*OUTSIDE[option], math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=rf"^{option} must be .*got {value!r}"):
            cls(**companions(option), **{option: value})


@pytest.mark.parametrize(("cls", "option"), NUMBERS)
def test_what_is_no_number_is_named(cls, option):
    for value in ("0.1", True, False, None, [0.1], 0.1j):
        with pytest.raises(TypeError, match=rf"^{option} must be a number.*got "):
            cls(**companions(option), **{option: value})


@pytest.mark.parametrize(
    ("cls", "option"), [param for param in OPTIONS if param.values[1] in FLAGS]
)
def test_a_flag_is_true_or_false(cls, option):
    # "no" would be taken for yes. `Dense` and `LogLoss` refuse it for their flags.
    for value in ("no", "False", 2):
        with pytest.raises((TypeError, ValueError), match=option):
            cls(**companions(option), **{option: value})


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"nesterov": True}, "nesterov.*momentum"),
        ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "nesterov.*dampening"),
        ({"rate_in_velocity": True}, "rate_in_velocity.*momentum"),
        (
            {"rate_in_velocity": True, "momentum": 0.9, "dampening": 0.1},
            "rate_in_velocity.*dampening",
        ),
        ({"dampening": 0.1}, "dampening.*momentum"),
    ],
)
def test_options_that_contradict(arguments, named):
    with pytest.raises(ValueError, match=named):
        SGD(**arguments)


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="beta1"):
        Adam(beta1=0.9)


def test_zero_epsilon_is_refused_where_it_divides_zero_by_zero():
    with pytest.raises(ValueError, match="epsilon must be a number > 0, got 0"):
        AdaDelta(epsilon=0)


@pytest.mark.parametrize("shape", [(N_ELEMENTS - 1,), (N_ELEMENTS, 1), (1,), ()])
def test_a_gradient_of_another_shape(shape, backend):
    theta = backend.from_host(start())
    state = Adam().init(theta, backend=backend)
    with pytest.raises(ValueError, match=r"^grad must have the shape of theta, \(12,\), got "):
        Adam().update(theta, backend.zeros(shape, "float64"), state)
    assert state.step == 0
    assert backend.to_host(theta).tolist() == start().tolist()


@pytest.mark.parametrize(
    ("returned", "error"),
    [
        (-1e-9, ValueError),
        (math.nan, ValueError),
        (math.inf, ValueError),
        ("0.1", TypeError),
        (None, TypeError),
        (True, TypeError),
    ],
)
def test_a_schedule_that_returns_no_rate(returned, error, backend):
    optimizer = Adam(learning_rate=lambda step: 0.1 if step == 0 else returned, weight_decay=0.1)
    theta, state = run(backend, optimizer, random_gradients(1))
    before = backend.to_host(theta).copy()
    with pytest.raises(error, match="learning rate of step 1"):
        optimizer.update(theta, backend.from_host(random_gradients(1)[0]), state)
    assert state.step == 1
    assert backend.to_host(theta).tolist() == before.tolist()
