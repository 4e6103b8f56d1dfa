"""Element-wise mathematics, written once.

A rule is a pure function ``rule(xp, *operands) -> result`` or ``-> (result, result, ...)`` of
values, using arithmetic, comparisons, float literals and the functions of
:class:`xpmlp.typing.RuleFunctions`. The reference adapter applies it to whole arrays; others run
it block by block or compile it into one loop or one CUDA kernel. So that all of these agree, a
rule multiplies no booleans (it uses ``where``), and a constant such as ``1 - beta`` is an operand
of its own, computed once in double precision.

Notation as in ``docs/design.md``: ``z`` pre-activation, ``a`` activation, ``d`` error term,
``y`` target, ``p`` parameter, ``g`` gradient.
"""

from __future__ import annotations

from typing import Any

X = Any  # the namespace of functions
V = Any  # a value or an array of values
V2 = tuple[V, V]
V3 = tuple[V, V, V]
V4 = tuple[V, V, V, V]

# --- Activations: a = g(z), and d <- d g'(z) from z or, where that is enough, from a ----------


def sigmoid(xp: X, z: V) -> V:
    # exp(-|z|) never overflows, and small results keep their relative accuracy.
    e = xp.exp(-xp.abs(z))
    return xp.where(z >= 0.0, 1.0, e) / (1.0 + e)


def sigmoid_backward(xp: X, a: V, d: V) -> V:
    return d * (a * (1.0 - a))


def tanh(xp: X, z: V) -> V:
    return xp.tanh(z)


def tanh_backward(xp: X, a: V, d: V) -> V:
    return d * (1.0 - a * a)


def relu(xp: X, z: V) -> V:
    return xp.maximum(z, 0.0)


def relu_backward(xp: X, a: V, d: V) -> V:
    return xp.where(a > 0.0, d, 0.0)


def leaky_relu(xp: X, z: V, slope: V) -> V:
    return xp.where(z > 0.0, z, slope * z)


def leaky_relu_backward(xp: X, z: V, d: V, slope: V) -> V:
    return xp.where(z > 0.0, d, slope * d)


def elu(xp: X, z: V, scale: V, alpha: V) -> V:
    return scale * xp.where(z > 0.0, z, alpha * xp.expm1(xp.minimum(z, 0.0)))


def elu_backward(xp: X, z: V, d: V, scale: V, alpha: V) -> V:
    return d * (scale * xp.where(z > 0.0, 1.0, alpha * xp.exp(xp.minimum(z, 0.0))))


def gelu(xp: X, z: V) -> V:
    # z Phi(z); 0.7071... = 1/sqrt(2)
    return 0.5 * z * (1.0 + xp.erf(z * 0.7071067811865476))


def gelu_backward(xp: X, z: V, d: V) -> V:
    # Phi(z) + z phi(z); 0.3989... = 1/sqrt(2 pi)
    cdf = 0.5 * (1.0 + xp.erf(z * 0.7071067811865476))
    return d * (cdf + z * (0.3989422804014327 * xp.exp(-0.5 * z * z)))


def gelu_tanh(xp: X, z: V) -> V:
    # 0.7978... = sqrt(2/pi)
    return 0.5 * z * (1.0 + xp.tanh(0.7978845608028654 * (z + 0.044715 * z * z * z)))


def gelu_tanh_backward(xp: X, z: V, d: V) -> V:
    # Beyond 1e4 the slope is 0 or 1; the bound keeps powers of z from overflowing.
    b = xp.maximum(xp.minimum(z, 1e4), -1e4)
    t = xp.tanh(0.7978845608028654 * (b + 0.044715 * b * b * b))
    inner = 0.7978845608028654 * (1.0 + 0.134145 * b * b)  # 0.134145 = 3 * 0.044715
    return d * (0.5 * (1.0 + t) + 0.5 * z * (1.0 - t * t) * inner)


def silu(xp: X, z: V) -> V:
    e = xp.exp(-xp.abs(z))
    return z * (xp.where(z >= 0.0, 1.0, e) / (1.0 + e))


def silu_backward(xp: X, z: V, d: V) -> V:
    e = xp.exp(-xp.abs(z))
    s = xp.where(z >= 0.0, 1.0, e) / (1.0 + e)
    return d * (s * (1.0 + z * (1.0 - s)))


def softplus(xp: X, z: V) -> V:
    return xp.maximum(z, 0.0) + xp.log1p(xp.exp(-xp.abs(z)))


def softplus_backward(xp: X, a: V, d: V) -> V:
    # g'(z) = sigmoid(z) = 1 - exp(-a)
    return -d * xp.expm1(-a)


def mish(xp: X, z: V) -> V:
    return z * xp.tanh(xp.maximum(z, 0.0) + xp.log1p(xp.exp(-xp.abs(z))))


def mish_backward(xp: X, z: V, d: V) -> V:
    e = xp.exp(-xp.abs(z))
    t = xp.tanh(xp.maximum(z, 0.0) + xp.log1p(e))
    s = xp.where(z >= 0.0, 1.0, e) / (1.0 + e)
    return d * (t + z * (1.0 - t * t) * s)


def exp(xp: X, z: V) -> V:
    return xp.exp(z)


def exp_backward(xp: X, a: V, d: V) -> V:
    return d * a


# Softmax is not element-wise; these are its element-wise parts (m: row maximum, s: row sum).


def exp_shifted(xp: X, z: V, m: V) -> V:
    return xp.exp(z - m)


def divide(xp: X, x: V, s: V) -> V:
    return x / s


def softmax_backward(xp: X, a: V, ad: V, s: V) -> V:
    # ad: the products a d, s: their row sum
    return ad - a * s


# --- Layers -----------------------------------------------------------------------------------


def add(xp: X, x: V, y: V) -> V:
    return x + y


def multiply(xp: X, x: V, y: V) -> V:
    return x * y


def dropout(xp: X, x: V, u: V, keep: V, scale: V) -> V:
    # u: uniform in [0, 1); the same function with the same u is the backward pass.
    return xp.where(u < keep, x * scale, 0.0)


# --- Losses: (loss, d loss / d prediction) of one element -------------------------------------


def squared_error(xp: X, a: V, y: V) -> V2:
    r = a - y
    return 0.5 * r * r, r


def averaged_squared_error(xp: X, a: V, y: V, share: V) -> V2:
    # The loss is averaged over the outputs, its derivative is not: what scikit-learn reports and
    # what it descends on.
    r = a - y
    return share * r * r, r


def absolute_error(xp: X, a: V, y: V) -> V2:
    r = a - y
    return xp.abs(r), xp.sign(r)


def huber(xp: X, a: V, y: V, delta: V) -> V2:
    r = a - y
    clipped = xp.maximum(-delta, xp.minimum(r, delta))
    return clipped * (r - 0.5 * clipped), clipped


def quantile(xp: X, a: V, y: V, half_minus_q: V) -> V2:
    # Pinball loss: q (y - a) where the prediction is below the target, (1 - q) (a - y) above.
    r = a - y
    slope = 0.5 * xp.sign(r) + half_minus_q
    return slope * r, slope


def poisson(xp: X, a: V, y: V, tiny: V) -> V2:
    # Half the unit deviance: a - y + y log(y / a). The rate a is taken as at least `tiny`.
    rate = xp.maximum(a, tiny)
    safe_y = xp.where(y > 0.0, y, 1.0)
    loss = rate - y + y * (xp.log(safe_y) - xp.log(rate))
    return loss, xp.where(a > tiny, 1.0 - y / rate, 0.0)


def poisson_from_log(xp: X, z: V, y: V) -> V2:
    # As `poisson`, from the logarithm of the rate.
    rate = xp.exp(z)
    safe_y = xp.where(y > 0.0, y, 1.0)
    return rate - y + y * (xp.log(safe_y) - z), rate - y


def binary_log_loss(xp: X, a: V, y: V, tiny: V) -> V2:
    # Probabilities are clipped to [tiny, 1 - tiny]; outside, the clipped loss is constant.
    p = xp.maximum(tiny, xp.minimum(a, 1.0 - tiny))
    loss = -(y * xp.log(p) + (1.0 - y) * xp.log(1.0 - p))
    slope = (p - y) / (p * (1.0 - p))
    return loss, xp.where(p == a, slope, 0.0)


def binary_log_loss_from_logits(xp: X, z: V, y: V) -> V2:
    e = xp.exp(-xp.abs(z))
    p = xp.where(z >= 0.0, 1.0, e) / (1.0 + e)
    return xp.maximum(z, 0.0) - z * y + xp.log1p(e), p - y


def categorical_log_loss(xp: X, a: V, y: V, tiny: V) -> V2:
    p = xp.maximum(tiny, xp.minimum(a, 1.0))
    return -y * xp.log(p), xp.where(p == a, -y / p, 0.0)


def categorical_log_loss_from_sigmoid(xp: X, z: V, y: V) -> V2:
    # -y log sigmoid(z)
    e = xp.exp(-xp.abs(z))
    q = xp.where(z >= 0.0, e, 1.0) / (1.0 + e)  # 1 - sigmoid(z)
    return y * (xp.maximum(-z, 0.0) + xp.log1p(e)), -y * q


def categorical_log_loss_from_softmax(xp: X, e: V, z: V, y: V, m: V, s: V, t: V) -> V2:
    # e = exp(z - m), m: row maximum, s: row sum of e, t: row sum of y
    return y * (xp.log(s) - (z - m)), t * (e / s) - y


# The focal loss -(1 - p)^gamma log(p) of the true class (Lin et al. 2017, equation 4).


def binary_focal(xp: X, a: V, y: V, gamma: V, tiny: V) -> V2:
    # Probabilities are clipped as in `binary_log_loss`.
    p = xp.maximum(tiny, xp.minimum(a, 1.0 - tiny))
    q = 1.0 - p
    log_p, log_q = xp.log(p), xp.log(q)
    q_gamma, p_gamma = xp.exp(gamma * log_q), xp.exp(gamma * log_p)
    loss = -(y * q_gamma * log_p + (1.0 - y) * p_gamma * log_q)
    slope = y * q_gamma * (gamma * log_p / q - 1.0 / p)
    slope = slope + (1.0 - y) * p_gamma * (1.0 / q - gamma * log_q / p)
    return loss, xp.where(p == a, slope, 0.0)


def binary_focal_from_logits(xp: X, z: V, y: V, gamma: V) -> V2:
    e = xp.exp(-xp.abs(z))
    p = xp.where(z >= 0.0, 1.0, e) / (1.0 + e)
    q = xp.where(z >= 0.0, e, 1.0) / (1.0 + e)
    tail = xp.log1p(e)
    minus_log_p, minus_log_q = xp.maximum(-z, 0.0) + tail, xp.maximum(z, 0.0) + tail
    on = y * xp.exp(-gamma * minus_log_q)
    off = (1.0 - y) * xp.exp(-gamma * minus_log_p)
    slope = off * (gamma * q * minus_log_q + p) - on * (gamma * p * minus_log_p + q)
    return on * minus_log_p + off * minus_log_q, slope


def categorical_focal(xp: X, a: V, y: V, gamma: V, tiny: V) -> V2:
    p = xp.maximum(tiny, xp.minimum(a, 1.0))
    q = xp.maximum(1.0 - p, tiny)
    q_gamma, log_p = xp.exp(gamma * xp.log(q)), xp.log(p)
    slope = y * q_gamma * (gamma * log_p / q - 1.0 / p)
    return -y * q_gamma * log_p, xp.where(p == a, slope, 0.0)


def categorical_focal_from_softmax(xp: X, z: V, y: V, m: V, s: V, gamma: V) -> V2:
    # The loss, and h = p d loss / dp. q is bounded away from zero for powers below one.
    e = xp.exp(z - m)
    p, minus_log_p = e / s, xp.log(s) - (z - m)
    q = xp.maximum((s - e) / s, 1e-30)
    q_gamma = xp.exp(gamma * xp.log(q))
    return y * q_gamma * minus_log_p, -y * q_gamma * (1.0 + gamma * p * minus_log_p / q)


def softmax_backward_from_logits(xp: X, h: V, z: V, m: V, s: V, t: V) -> V:
    # h = p d loss / dp, t: row sum of h
    return h - xp.exp(z - m) / s * t


# scikit-learn's log loss: of the rounded probability, clipped, with the derivative unclipped.


def clipped_binary_log_loss(xp: X, z: V, y: V, eps: V) -> V2:
    e = xp.exp(-xp.abs(z))
    p = xp.where(z >= 0.0, 1.0, e) / (1.0 + e)
    clipped = xp.maximum(eps, xp.minimum(p, 1.0 - eps))
    return -(y * xp.log(clipped) + (1.0 - y) * xp.log(1.0 - clipped)), p - y


def clipped_categorical_log_loss(xp: X, e: V, y: V, s: V, eps: V) -> V2:
    # e = exp(z - row maximum), s: its row sum
    p = e / s
    return -y * xp.log(xp.maximum(eps, xp.minimum(p, 1.0 - eps))), p - y


def one_hot(xp: X, label: V, column: V, off: V, on: V) -> V:
    return xp.where(label == column, on + 0.0 * column, off)


def affine(xp: X, x: V, slope: V, offset: V) -> V:
    return x * slope + offset


# --- Penalties and clipping -------------------------------------------------------------------


def add_l2(xp: X, x: V, squares: V, alpha: V) -> V:
    return x + 0.5 * alpha * squares


def add_l2_gradient(xp: X, g: V, w: V, alpha: V) -> V:
    return g + alpha * w


def add_l1(xp: X, x: V, total: V, l1: V) -> V:
    return x + l1 * total


def add_l1_gradient(xp: X, g: V, w: V, l1: V) -> V:
    return g + l1 * xp.sign(w)


def magnitude(xp: X, x: V) -> V:
    return xp.abs(x)


def where_finite(xp: X, x: V, y: V) -> V:
    # The difference is NaN for NaN and for infinity.
    return xp.where(y - y == 0.0, x, 0.0)


def gate(xp: X, g: V, alive: V) -> V:
    return xp.where(alive > 0.0, g, 0.0)


def clip(xp: X, g: V, limit: V) -> V:
    return xp.maximum(-limit, xp.minimum(g, limit))


def clip_norm_factor(xp: X, squares: V, limit: V) -> V:
    # min(1, limit / norm), without dividing by zero
    return limit / xp.maximum(xp.sqrt(squares), limit)


def weight_share(xp: X, w: V, total: V) -> V:
    # A batch whose weights are all zero contributes nothing.
    share = w / xp.where(total > 0.0, total, 1.0)
    return xp.where(total > 0.0, share, 0.0)


# --- Optimizers: new parameters and state from gradient and state -----------------------------


def flush(xp: X, x: V, tiny: V) -> V:
    return xp.where(xp.abs(x) > tiny, x, 0.0)


def sgd(xp: X, p: V, g: V, lr: V) -> V:
    return p - lr * g


def momentum(xp: X, p: V, g: V, v: V, lr: V, mu: V, gain: V) -> V2:
    v = mu * v + gain * g
    return p - lr * v, v


def nesterov(xp: X, p: V, g: V, v: V, lr: V, mu: V, gain: V) -> V2:
    v = mu * v + gain * g
    return p - lr * (g + mu * v), v


def scaled_momentum(xp: X, p: V, g: V, v: V, lr: V, mu: V) -> V2:
    v = mu * v - lr * g
    return p + v, v


def scaled_nesterov(xp: X, p: V, g: V, v: V, lr: V, mu: V) -> V2:
    v = mu * v - lr * g
    return p + (mu * v - lr * g), v


def adagrad(xp: X, p: V, g: V, s: V, lr: V, eps: V) -> V2:
    s = s + g * g
    return p - lr * g / (xp.sqrt(s) + eps), s


def adadelta(xp: X, p: V, g: V, s: V, u: V, lr: V, rho: V, one_minus_rho: V, eps: V) -> V3:
    s = rho * s + one_minus_rho * g * g
    delta = xp.sqrt(u + eps) / xp.sqrt(s + eps) * g
    return p - lr * delta, s, rho * u + one_minus_rho * delta * delta


def rmsprop(xp: X, p: V, g: V, s: V, lr: V, rho: V, one_minus_rho: V, eps: V) -> V2:
    s = rho * s + one_minus_rho * g * g
    return p - lr * g / (xp.sqrt(s) + eps), s


def rmsprop_centered(xp: X, p: V, g: V, s: V, c: V, lr: V, rho: V, one_minus_rho: V, eps: V) -> V3:
    s = rho * s + one_minus_rho * g * g
    c = rho * c + one_minus_rho * g
    # Rounding can make the variance s - c*c slightly negative.
    return p - lr * g / (xp.sqrt(xp.maximum(s - c * c, 0.0)) + eps), s, c


def rmsprop_momentum(
    xp: X, p: V, g: V, s: V, v: V, lr: V, rho: V, one_minus_rho: V, eps: V, mu: V
) -> V3:
    s = rho * s + one_minus_rho * g * g
    v = mu * v + g / (xp.sqrt(s) + eps)
    return p - lr * v, s, v


def rmsprop_centered_momentum(
    xp: X, p: V, g: V, s: V, c: V, v: V, lr: V, rho: V, one_minus_rho: V, eps: V, mu: V
) -> V4:
    s = rho * s + one_minus_rho * g * g
    c = rho * c + one_minus_rho * g
    v = mu * v + g / (xp.sqrt(xp.maximum(s - c * c, 0.0)) + eps)
    return p - lr * v, s, c, v


# Adam and its kin receive lr / (1 - beta_1^t) as `lr` and 1 / sqrt(1 - beta_2^t) as `root`.


def adam(xp: X, p: V, g: V, m: V, v: V, lr: V, b1: V, o1: V, b2: V, o2: V, root: V, eps: V) -> V3:
    m = b1 * m + o1 * g
    v = b2 * v + o2 * g * g
    return p - lr * m / (xp.sqrt(v) * root + eps), m, v


def amsgrad(
    xp: X, p: V, g: V, m: V, v: V, w: V, lr: V, b1: V, o1: V, b2: V, o2: V, root: V, eps: V
) -> V4:
    m = b1 * m + o1 * g
    v = b2 * v + o2 * g * g
    w = xp.maximum(w, v)
    return p - lr * m / (xp.sqrt(w) * root + eps), m, v, w


def nadam(
    xp: X, p: V, g: V, m: V, v: V, lr_g: V, lr_m: V, b1: V, o1: V, b2: V, o2: V, root: V, eps: V
) -> V3:
    m = b1 * m + o1 * g
    v = b2 * v + o2 * g * g
    return p - (lr_g * g + lr_m * m) / (xp.sqrt(v) * root + eps), m, v


def adamax(xp: X, p: V, g: V, m: V, u: V, lr: V, b1: V, o1: V, b2: V, eps: V) -> V3:
    m = b1 * m + o1 * g
    u = xp.maximum(b2 * u, xp.abs(g) + eps)
    return p - lr * m / u, m, u
