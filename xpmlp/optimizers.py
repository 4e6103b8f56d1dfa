r"""Optimizers: in-place updates of one flat parameter vector.

``state = opt.init(theta)``, then ``opt.update(theta, grad, state)`` for every step. The update
of one element is a rule in :mod:`xpmlp.rules`, so one formula serves every adapter. The state
belongs to one run: its step count starts at 0 and is never reset.

Every optimizer takes ``learning_rate``, a number or a schedule, which is a function of the step
alone and may be asked for some steps ahead, and ``weight_decay=``, which is decoupled from the
gradient (Loshchilov & Hutter 2019): :math:`\theta \leftarrow (1 - \eta \lambda)\,\theta` before
the update. PyTorch calls the penalty :math:`\tfrac\alpha2 \|\theta\|^2`
``weight_decay`` except in AdamW; here that is ``alpha`` of the objective.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, ClassVar

import array_api_compat

from xpmlp import rules
from xpmlp.backends import backend_of, dtype_name, host, reopen
from xpmlp.errors import check_flag, check_number
from xpmlp.schedules import Schedule
from xpmlp.typing import Array, Backend, Rule

# A momentum whose gradient stays zero decays into denormal numbers, on which a CPU is slower by
# an order of magnitude. Every so many steps they become zero: by themselves it would take those of
# Adam's v sixteen thousand.
FLUSH_EVERY = 256


@dataclass
class OptimizerState:
    """What an optimizer remembers between updates.

    Attributes
    ----------
    step : int
        Finished updates.
    slots : dict of str to array
        One array of the shape of theta for each remembered quantity.
    tiny : float
        The smallest normal number. Remembered values below it become zero now and then.
    mu_product : float
        NAdam's product of momentum coefficients; 1 for the others.
    """

    step: int
    slots: dict[str, Array]
    backend: Backend = field(repr=False)
    n_decayed: int
    tiny: float = 0.0
    mu_product: float = 1.0

    def on(self, backend: Backend) -> OptimizerState:
        """A copy of the state on an opened device."""
        slots = {}
        for name, slot in self.slots.items():
            here = slot if backend.owns(slot) else backend.from_host(self.backend.to_host(slot))
            with backend.context():
                slots[name] = backend.empty(slot.shape, dtype_name(slot))
                backend.copy(here, slots[name])
        return replace(self, slots=slots, backend=backend)

    def __deepcopy__(self, memo: dict[int, Any]) -> OptimizerState:
        return self.on(self.backend)

    def __copy__(self) -> OptimizerState:
        return self.on(self.backend)

    def __reduce__(self) -> tuple[Any, ...]:
        slots = {name: self.backend.to_host(slot) for name, slot in self.slots.items()}
        place = self.backend.device, self.backend.name
        return _unpickle, (place, self.step, slots, self.n_decayed, self.tiny, self.mu_product)


@dataclass(frozen=True)
class Optimizer:
    """The part that all optimizers share; derive from it to add one.

    Parameters
    ----------
    learning_rate : float or callable, default 0.001
        Step size, or a schedule ``step -> float``.
    weight_decay : float, default 0.0
        Decoupled weight decay.
    """

    name: ClassVar[str]
    learning_rate: float | Callable[[int], float] = 0.001
    _: KW_ONLY
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not callable(self.learning_rate):
            check_number("learning_rate", self.learning_rate, minimum=0)
        check_number("weight_decay", self.weight_decay, minimum=0)

    def init(
        self, theta: Any, n_decayed: int | None = None, backend: Backend | None = None
    ) -> OptimizerState:
        """The state before the first update.

        Parameters
        ----------
        theta : array of shape (n_parameters,)
        n_decayed : int, optional
            Weight decay acts on this many leading elements. Default: on all. The weights of a
            network lead its parameter vector, so that its biases can be left alone.
        backend : Backend, optional
            Default: the adapter for theta's library and device.
        """
        if not _is_array(theta) or theta.ndim != 1:
            raise TypeError(f"theta must be a 1-D array, got {theta!r}")
        if dtype_name(theta) not in ("float32", "float64"):
            raise TypeError(f"theta must be of float32 or float64, got {dtype_name(theta)}")
        backend = backend or backend_of(theta)
        slots = {slot: backend.zeros(theta.shape, dtype_name(theta)) for slot in self.slots()}
        decayed = theta.shape[0] if n_decayed is None else n_decayed
        tiny = float(backend.xp.finfo(theta.dtype).smallest_normal)
        return OptimizerState(0, slots, backend, decayed, tiny)

    def update(self, theta: Array, grad: Any, state: OptimizerState) -> None:
        """One step, in place on `theta` and `state`.

        Parameters
        ----------
        theta, grad : array of shape (n_parameters,)
        state : OptimizerState
            From :meth:`init`, advanced by one.

        Raises
        ------
        ValueError
            If shapes differ, or a schedule returns a negative or non-finite rate.
        TypeError
            If dtypes differ, or the state is not of this optimizer.
        """
        for name, value in (("theta", theta), ("grad", grad)):
            if not _is_array(value):
                raise TypeError(f"{name} must be an array, got {value!r}")
        if tuple(grad.shape) != tuple(theta.shape):
            raise ValueError(
                f"grad must have the shape of theta, {tuple(theta.shape)}, got {tuple(grad.shape)}"
            )
        if grad.dtype != theta.dtype:
            raise TypeError(
                f"grad must have the dtype of theta, {dtype_name(theta)}, got {dtype_name(grad)}"
            )
        if not isinstance(state, OptimizerState) or tuple(state.slots) != self.slots():
            raise TypeError(f"state must come from init of this optimizer, got {state!r}")
        for slot in state.slots.values():
            if slot.shape != theta.shape or slot.dtype != theta.dtype:
                raise ValueError(
                    f"state must be of a theta of shape {tuple(theta.shape)} and dtype "
                    f"{dtype_name(theta)}, got {tuple(slot.shape)} and {dtype_name(slot)}"
                )
        (numbers,) = self.advance(state)
        with state.backend.context():
            self.apply(state.backend, theta, grad, state, numbers)
            self.flush(state.backend, state)

    def advance(self, state: OptimizerState, n: int = 1) -> list[tuple[float, ...]]:
        """Count `n` more steps; the numbers of each that :meth:`apply` takes."""
        rates = self.rates(range(state.step, state.step + n))
        numbers = self.numbers(rates, state)
        state.step += n
        if not self.weight_decay:
            return numbers
        decay = [1.0 - rate * self.weight_decay for rate in rates]
        return [(factor, *one) for factor, one in zip(decay, numbers, strict=True)]

    @property
    def n_numbers(self) -> int:
        """How many numbers a step has."""
        (example,) = self.numbers([0.0], OptimizerState(0, {}, host(), 0))
        return bool(self.weight_decay) + len(example)

    def apply(
        self,
        backend: Backend,
        theta: Array,
        grad: Array,
        state: OptimizerState,
        numbers: Sequence[Any],
    ) -> None:
        """The arithmetic of one step, by numbers or by 0-d arrays that hold them."""
        if self.weight_decay:
            factor, *numbers = numbers
            decayed = theta[: state.n_decayed]
            backend.elementwise(rules.multiply)((decayed,), decayed, factor)
        slots = tuple(state.slots.values())
        backend.elementwise(self.rule())((theta, *slots), theta, grad, *slots, *numbers)

    def flush(self, backend: Backend, state: OptimizerState) -> None:
        """Every so many steps, set remembered values below the smallest normal number to zero."""
        if state.step % FLUSH_EVERY == 0:
            for slot in state.slots.values():
                backend.elementwise(rules.flush)((slot,), slot, state.tiny)

    def over(self, n_steps: int) -> Optimizer:
        """The same optimizer, its schedule spread over `n_steps` updates if it has no length."""
        if not isinstance(self.learning_rate, Schedule):
            return self
        return replace(self, learning_rate=self.learning_rate.over(n_steps))

    def rates(self, steps: range) -> list[float]:
        """The learning rates of the updates after so many finished ones."""
        if not callable(self.learning_rate):
            return [float(self.learning_rate)] * len(steps)
        rates = [self.learning_rate(step) for step in steps]
        for step, rate in zip(steps, rates, strict=True):
            check_number(f"the learning rate of step {step}", rate, minimum=0)
        return [float(rate) for rate in rates]

    def slots(self) -> tuple[str, ...]:
        """Names of the remembered arrays, in the order the rule takes and returns them."""
        return ()

    @abstractmethod
    def rule(self) -> Rule:
        """``rule(xp, p, g, *slots, *numbers) -> (p, *slots)``."""

    @abstractmethod
    def numbers(self, rates: list[float], state: OptimizerState) -> list[tuple[float, ...]]:
        """The rule's numbers for the next updates; ``state.step`` counts finished ones."""


@dataclass(frozen=True)
class SGD(Optimizer):
    r"""Gradient descent: stochastic, mini-batch or full batch, by the batch size alone.

    :math:`v \leftarrow \mu v + (1 - \text{dampening})\, g`,
    :math:`\theta \leftarrow \theta - \eta v`, or with Nesterov's variant
    :math:`\theta \leftarrow \theta - \eta (g + \mu v)` (Sutskever et al. 2013). As in PyTorch,
    the first step takes ``v = g``, undampened. ``dampening=momentum`` is the averaged form.

    Parameters
    ----------
    momentum : float, default 0.0
        In [0, 1].
    dampening : float, default 0.0
        In [0, 1].
    nesterov : bool, default False
        Needs momentum and no dampening.
    rate_in_velocity : bool, default False
        Write the velocity as :math:`v \leftarrow \mu v - \eta g` and add it, as Sutskever et al.,
        Keras and scikit-learn do. It differs where the rate changes: an old gradient keeps the
        rate of its own step. Needs momentum and no dampening.
    """

    learning_rate: float | Callable[[int], float] = 0.01
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    rate_in_velocity: bool = False
    name = "sgd"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("momentum", self.momentum, minimum=0, maximum=1)
        check_number("dampening", self.dampening, minimum=0, maximum=1)
        for name in ("nesterov", "rate_in_velocity"):
            check_flag(name, getattr(self, name))
            if getattr(self, name) and (self.momentum == 0 or self.dampening != 0):
                raise ValueError(
                    f"{name}=True needs momentum > 0 and dampening=0, "
                    f"got momentum={self.momentum!r}, dampening={self.dampening!r}"
                )
        if self.dampening and not self.momentum:
            raise ValueError(f"dampening={self.dampening!r} needs momentum > 0, got momentum=0")

    def slots(self) -> tuple[str, ...]:
        return ("velocity",) if self.momentum else ()

    def rule(self) -> Rule:
        if not self.momentum:
            return rules.sgd
        if self.rate_in_velocity:
            return rules.scaled_nesterov if self.nesterov else rules.scaled_momentum
        return rules.nesterov if self.nesterov else rules.momentum

    def numbers(self, rates: list[float], state: OptimizerState) -> list[tuple[float, ...]]:
        momentum = float(self.momentum)
        if not momentum:
            return [(rate,) for rate in rates]
        if self.rate_in_velocity:
            return [(rate, momentum) for rate in rates]
        gains = [1.0 - self.dampening] * len(rates)
        if state.step == 0:
            gains[0] = 1.0
        return [(rate, momentum, gain) for rate, gain in zip(rates, gains, strict=True)]


@dataclass(frozen=True)
class AdaGrad(Optimizer):
    r""":math:`s \leftarrow s + g^2`,
    :math:`\theta \leftarrow \theta - \eta\, g / (\sqrt s + \epsilon)` (Duchi et al. 2011).

    Parameters
    ----------
    epsilon : float, default 1e-10
    """

    learning_rate: float | Callable[[int], float] = 0.01
    epsilon: float = 1e-10
    name = "adagrad"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("epsilon", self.epsilon, minimum=0)

    def slots(self) -> tuple[str, ...]:
        return ("square_sum",)

    def rule(self) -> Rule:
        return rules.adagrad

    def numbers(self, rates: list[float], state: OptimizerState) -> list[tuple[float, ...]]:
        return [(rate, float(self.epsilon)) for rate in rates]


@dataclass(frozen=True)
class AdaDelta(Optimizer):
    r""":math:`s \leftarrow \rho s + (1 - \rho) g^2`,
    :math:`\delta = -\sqrt{u + \epsilon} / \sqrt{s + \epsilon}\; g`,
    :math:`u \leftarrow \rho u + (1 - \rho) \delta^2`,
    :math:`\theta \leftarrow \theta + \eta \delta` (Zeiler 2012, equations 8 to 10).

    Parameters
    ----------
    rho : float, default 0.9
        In [0, 1).
    epsilon : float, default 1e-6
    """

    learning_rate: float | Callable[[int], float] = 1.0
    rho: float = 0.9
    epsilon: float = 1e-6
    name = "adadelta"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("rho", self.rho, minimum=0, maximum=1, open_maximum=True)
        check_number("epsilon", self.epsilon, minimum=0, open_minimum=True)

    def slots(self) -> tuple[str, ...]:
        return ("square_average", "delta_average")

    def rule(self) -> Rule:
        return rules.adadelta

    def numbers(self, rates: list[float], state: OptimizerState) -> list[tuple[float, ...]]:
        others = float(self.rho), 1.0 - self.rho, float(self.epsilon)
        return [(rate, *others) for rate in rates]


@dataclass(frozen=True)
class RMSprop(Optimizer):
    r""":math:`s \leftarrow \rho s + (1 - \rho) g^2`,
    :math:`\theta \leftarrow \theta - \eta\, g / (\sqrt s + \epsilon)` (Hinton, lecture 6).

    Parameters
    ----------
    rho : float, default 0.99
        In [0, 1).
    epsilon : float, default 1e-8
    momentum : float, default 0.0
        In [0, 1). With it, :math:`v \leftarrow \mu v + g / (\sqrt s + \epsilon)` and
        :math:`\theta \leftarrow \theta - \eta v`.
    centered : bool, default False
        Divide by the root of the variance, ``s - c**2`` with the running mean c of the
        gradient, instead (Graves 2013).
    """

    rho: float = 0.99
    epsilon: float = 1e-8
    momentum: float = 0.0
    centered: bool = False
    name = "rmsprop"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("rho", self.rho, minimum=0, maximum=1, open_maximum=True)
        check_number("epsilon", self.epsilon, minimum=0)
        check_number("momentum", self.momentum, minimum=0, maximum=1, open_maximum=True)
        check_flag("centered", self.centered)

    def slots(self) -> tuple[str, ...]:
        optional = (("gradient_average", self.centered), ("velocity", bool(self.momentum)))
        return "square_average", *(slot for slot, used in optional if used)

    def rule(self) -> Rule:
        if self.momentum:
            return rules.rmsprop_centered_momentum if self.centered else rules.rmsprop_momentum
        return rules.rmsprop_centered if self.centered else rules.rmsprop

    def numbers(self, rates: list[float], state: OptimizerState) -> list[tuple[float, ...]]:
        others: tuple[float, ...] = float(self.rho), 1.0 - self.rho, float(self.epsilon)
        if self.momentum:
            others = *others, float(self.momentum)
        return [(rate, *others) for rate in rates]


@dataclass(frozen=True)
class _AdamBase(Optimizer):
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("beta_1", self.beta_1, minimum=0, maximum=1, open_maximum=True)
        check_number("beta_2", self.beta_2, minimum=0, maximum=1, open_maximum=True)
        check_number("epsilon", self.epsilon, minimum=0)

    def slots(self) -> tuple[str, ...]:
        return "m", "v"

    def _constants(self) -> tuple[float, float, float, float, float]:
        """beta_1, 1 - beta_1, beta_2, 1 - beta_2, epsilon."""
        b1, b2 = float(self.beta_1), float(self.beta_2)
        return b1, 1.0 - b1, b2, 1.0 - b2, float(self.epsilon)


@dataclass(frozen=True)
class Adam(_AdamBase):
    r""":math:`m \leftarrow \beta_1 m + (1 - \beta_1) g`,
    :math:`v \leftarrow \beta_2 v + (1 - \beta_2) g^2`,
    :math:`\theta \leftarrow \theta - \eta\, \hat m / (\sqrt{\hat v} + \epsilon)` with
    :math:`\hat m = m / (1 - \beta_1^t)`, :math:`\hat v = v / (1 - \beta_2^t)`
    (Kingma & Ba 2015).

    Parameters
    ----------
    beta_1, beta_2 : float, default 0.9 and 0.999
        In [0, 1).
    epsilon : float, default 1e-8
    amsgrad : bool, default False
        Use the largest v so far (Reddi et al. 2018).
    epsilon_hat : bool, default False
        Add epsilon to :math:`\sqrt v` before the correction, as scikit-learn and TensorFlow do:
        the paper's :math:`\hat\epsilon`, at the end of its section 2.
    """

    amsgrad: bool = False
    epsilon_hat: bool = False
    name = "adam"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("amsgrad", self.amsgrad)
        check_flag("epsilon_hat", self.epsilon_hat)

    def slots(self) -> tuple[str, ...]:
        return ("m", "v", "v_max") if self.amsgrad else ("m", "v")

    def rule(self) -> Rule:
        return rules.amsgrad if self.amsgrad else rules.adam

    def numbers(self, rates: list[float], state: OptimizerState) -> list[tuple[float, ...]]:
        b1, o1, b2, o2, epsilon = self._constants()
        numbers: list[tuple[float, ...]] = [
            (rate / (1.0 - b1**t), b1, o1, b2, o2, 1.0 / math.sqrt(1.0 - b2**t), epsilon)
            for t, rate in enumerate(rates, state.step + 1)
        ]
        if self.epsilon_hat:
            return [(*others, root, eps * root) for *others, root, eps in numbers]
        return numbers


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay by default (Loshchilov & Hutter 2019).

    Parameters
    ----------
    weight_decay : float, default 0.01
    """

    weight_decay: float = field(default=0.01, kw_only=True)
    name = "adamw"


@dataclass(frozen=True)
class NAdam(_AdamBase):
    r"""Adam with Nesterov momentum (Dozat 2016), and his momentum schedule
    :math:`\mu_t = \beta_1 (1 - \tfrac12\, 0.96^{t \psi})`:
    :math:`\theta \leftarrow \theta - \eta\, \big(\frac{1 - \mu_t}{1 - \prod_{i \le t} \mu_i} g +
    \frac{\mu_{t+1}}{1 - \prod_{i \le t + 1} \mu_i} m\big) / (\sqrt{\hat v} + \epsilon)`.

    Parameters
    ----------
    beta_1, beta_2 : float, default 0.9 and 0.999
        In [0, 1).
    epsilon : float, default 1e-8
    momentum_decay : float, default 0.004
        :math:`\psi`.
    """

    learning_rate: float | Callable[[int], float] = 0.002
    momentum_decay: float = 0.004
    name = "nadam"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("momentum_decay", self.momentum_decay, minimum=0)

    def rule(self) -> Rule:
        return rules.nadam

    def numbers(self, rates: list[float], state: OptimizerState) -> list[tuple[float, ...]]:
        b1, o1, b2, o2, epsilon = self._constants()
        numbers: list[tuple[float, ...]] = []
        for t, rate in enumerate(rates, state.step + 1):
            mu, mu_next = self._mu(t), self._mu(t + 1)
            state.mu_product *= mu
            lr_g = rate * (1.0 - mu) / (1.0 - state.mu_product)
            lr_m = rate * mu_next / (1.0 - state.mu_product * mu_next)
            root = 1.0 / math.sqrt(1.0 - b2**t)
            numbers.append((lr_g, lr_m, b1, o1, b2, o2, root, epsilon))
        return numbers

    def _mu(self, t: int) -> float:
        return float(self.beta_1 * (1.0 - 0.5 * 0.96 ** (t * self.momentum_decay)))


@dataclass(frozen=True)
class AdaMax(_AdamBase):
    r""":math:`m` as in Adam, :math:`u \leftarrow \max(\beta_2 u, |g| + \epsilon)` element by
    element, :math:`\theta \leftarrow \theta - \frac{\eta}{1 - \beta_1^t}\, m / u` (Kingma & Ba
    2015, section 7.1; epsilon, as in PyTorch, keeps u positive).

    Parameters
    ----------
    beta_1, beta_2 : float, default 0.9 and 0.999
        In [0, 1).
    epsilon : float, default 1e-8
    """

    learning_rate: float | Callable[[int], float] = 0.002
    name = "adamax"

    def slots(self) -> tuple[str, ...]:
        return "m", "u"

    def rule(self) -> Rule:
        return rules.adamax

    def numbers(self, rates: list[float], state: OptimizerState) -> list[tuple[float, ...]]:
        b1, o1, b2, _, epsilon = self._constants()
        return [
            (rate / (1.0 - b1**t), b1, o1, b2, epsilon)
            for t, rate in enumerate(rates, state.step + 1)
        ]


def _unpickle(
    place: tuple[str, str], step: int, slots: dict[str, Any], *numbers: Any
) -> OptimizerState:
    """A state from a pickle; where its device is missing, on the CPU with a warning."""
    backend = reopen(*place)
    return OptimizerState(step, slots, host(), *numbers).on(backend)


def _is_array(x: Any) -> bool:
    return bool(array_api_compat.is_array_api_obj(x))


OPTIMIZERS: dict[str, type[Any]] = {
    cls.name: cls for cls in (SGD, AdaGrad, AdaDelta, RMSprop, Adam, AdamW, NAdam, AdaMax)
}
