"""The documentation that both estimators share, and the way it gets into them."""

from __future__ import annotations

from inspect import cleandoc
from typing import TypeVar

T = TypeVar("T")


def documented(member: T) -> T:
    """Fill this module's texts into a docstring, where it has ``{parameters}`` and so on."""
    if member.__doc__:  # there is none under python -OO
        text = cleandoc(member.__doc__)
        for name, shared in TEXTS.items():
            text = text.replace(f"{{{name}}}", shared)
        member.__doc__ = text
    return member


_PARAMETERS = """\
hidden_layer_sizes : int or sequence of int, default (100,)
    Units of each hidden layer. An empty sequence leaves a linear model.
activation : str, Activation, or list of them, default "relu"
    Of the hidden layers: one for all, or one for each. "identity", "logistic", "tanh", "relu",
    and every other of :mod:`xpmlp.activations`.
solver : str or Optimizer, default "adam"
    "sgd", "adam" and "lbfgs" are scikit-learn's: SGD keeps the rate inside its velocity, Adam adds
    `epsilon` to the uncorrected root, L-BFGS is SciPy's, on all samples at once, and computes in
    float64 unless `dtype` says otherwise. Also "adamw", "nadam", "adamax", "rmsprop", "adagrad"
    and "adadelta", which wants ``learning_rate_init=1.0``, and any object of
    :mod:`xpmlp.optimizers`, which holds its own learning rate.
alpha : float, default 0.0001
    Strength of the L2 penalty on weights, ``alpha / (2 n) sum W**2`` where n is the number of
    samples in the batch, or the sum of their weights.
batch_size : int or "auto", default "auto"
    Rows of a batch, "auto" for 200; at most all samples. L-BFGS takes no batches.
learning_rate : {"constant", "invscaling", "adaptive"}, schedule or callable, default "constant"
    "invscaling" is ``learning_rate_init / (t + 1) ** power_t`` after t samples; "adaptive" divides
    the rate by 5 where training would have stopped, down to 1e-6. As in scikit-learn, "adam"
    keeps its rate with these. Also "cosine", "one_cycle", "step", "exponential" and "warmup" of
    :mod:`xpmlp.schedules`, an object of that module, or a callable from the number of finished
    updates to a rate.
learning_rate_init : float, default 0.001
    The rate, or the first, or the one a named schedule is built on. Not used by L-BFGS.
power_t : float, default 0.5
    Of "invscaling".
max_iter : int, default 200
    Epochs, or iterations of L-BFGS, at most.
shuffle : bool, default True
    Whether the samples come in a new order each epoch.
random_state : int, numpy.random.RandomState or None, default None
    Draws the initial weights, the validation split, the orders and what seeds dropout, in
    scikit-learn's order. None differs from run to run.
tol : float, default 1e-4
    What must improve by at least this in `n_iter_no_change` epochs, or training ends; for L-BFGS
    the largest component of the gradient at the end.
verbose : bool or int, default False
    Whether to print the loss of each epoch, and the device where it is not the CPU.
warm_start : bool, default False
    Whether ``fit`` goes on from the present weights.
momentum : float, default 0.9
    Of "sgd", in [0, 1].
nesterovs_momentum : bool, default True
    Of "sgd".
early_stopping : bool, default False
    Whether to stop on validation data, ``X_val`` of ``fit`` or a part of X, and to end with the
    weights of the best epoch.
validation_fraction : float, default 0.1
    That part of X. The split keeps the shares of two classes, not of more, as in scikit-learn.
beta_1, beta_2 : float, default 0.9 and 0.999
    Of "adam", "adamw", "nadam" and "adamax", in [0, 1).
epsilon : float, default 1e-8
    Of the same.
n_iter_no_change : int or inf, default 10
    Epochs without improvement that are still accepted.
max_fun : int, default 15000
    Evaluations of the loss by L-BFGS at most.
dropout : float or list of float, default 0.0
    Probability to drop a value, in [0, 1): one for the output of all hidden layers, or a list, of
    the input first and then of each hidden layer.
bias : bool, default True
    Whether layers have biases.
layers : list of Dense and Dropout, optional
    The hidden layers themselves, each with its own units, activation, bias and initial weights,
    in place of the four parameters for these. The output layer is added.
l1 : float, default 0.0
    Strength of the penalty ``l1 sum |W|``, which is not divided by the samples.
weight_decay : float, optional
    Decoupled weight decay. Default: the solver's, 0.01 for "adamw" and none for the others.
clip_norm : float, optional
    Scale gradients down to this Euclidean norm.
monitor : str or callable, optional
    What must improve: "loss", "val_loss", "val_score", the name of a scikit-learn scorer, or a
    callable ``(estimator, X, y) -> float`` where more is better. All but "loss" need validation
    data, and `early_stopping` to end with the best weights. Default: "loss", with `early_stopping`
    "val_score", or "val_loss" where a regressor's loss is not one of scikit-learn's.
callbacks : list of Callback, optional
    See :class:`xpmlp.Callback`.
device : str, default "auto"
    "cpu", "cuda", "cuda:1", or what an adapter adds. "auto" computes an array of another library
    where it lives, and anything else on the best device that works.
backend : str or Backend, optional
    An adapter by name, or an opened one.
dtype : {"float64", "float32"}, optional
    Of weights and arithmetic. Default: float32 if X is, otherwise float64.
precision : str, optional
    How the arithmetic is done, IEEE 754 unless said otherwise; see :class:`xpmlp.Network`.
fallback : bool, default True
    Whether a device that cannot be used gives way to the CPU, with a warning."""

_ATTRIBUTES = """\
coefs_, intercepts_ : list of array
    Weights of shape ``(n_in, n_out)`` and biases of shape ``(n_out,)`` of each layer, in the
    library of the X that was trained on. Assigning to an element changes the network; so does
    writing into one, unless it shows a GPU's as NumPy array.
network_ : Network
    The network itself.
history_ : History
    Lists with one number an epoch: "loss"; with validation data also "val_loss", without
    penalties, and "val_score"; with ``X_val`` also "score", of X.
n_features_in_, n_outputs_, n_layers_ : int
    Columns of X, units of the output, layers with input and output.
feature_names_in_ : array of str
    Names of the columns of X, where it had such.
out_activation_ : str
    Name of the output activation.
loss_ : float
    The newest loss.
loss_curve_ : list of float
    The loss of each epoch; not with L-BFGS, whose are in ``history_``.
best_loss_ : float or None
    The smallest of them; None with early stopping.
validation_scores_ : list of float or None
    The score of the validation data in each epoch; None without early stopping.
best_validation_score_ : float or None
    The largest of them.
n_iter_, t_ : int
    Epochs of the newest ``fit``, samples seen in all."""

_FIT = """\
Train, from the start unless ``warm_start=True``.

Parameters
----------
X : array-like or sparse matrix of shape (n_samples, n_features)
    Of NumPy, pandas, polars, SciPy, CuPy, PyTorch or any array API library. Whatever the dtype,
    no second copy is made of an array: it is cast batch by batch.
y : array-like of shape (n_samples,) or (n_samples, n_outputs)
    Class labels, an indicator matrix of several labels a row, or numbers.
sample_weight : array-like of shape (n_samples,), optional
    At least 0 each, and not all 0.
X_val, y_val : array-like, optional
    Data to validate on after each epoch.
resume : path-like, optional
    Go on from this checkpoint, or from the newest of this folder, with the same data and
    parameters; see :class:`xpmlp.Checkpoint`, which belongs into `callbacks`. `max_iter` may be
    larger, where no schedule spans it. Numbers are drawn as that run drew them. Not with L-BFGS.

Returns
-------
self

Raises
------
ValueError, TypeError
    If an argument is wrong, an option cannot apply, or training became non-finite. The estimator
    is then as it was before.
ModelFileError, OSError
    If `resume` is no checkpoint of such a run, is damaged, or cannot be read.

Warns
-----
ConvergenceWarning
    If `max_iter` ended training, or the loss became non-finite after epochs that early stopping
    could go back to.
TrainingInterruptedWarning
    If Ctrl-C or SIGTERM ended training; the model is usable."""

_PARTIAL_FIT = """\
Train for one epoch, from the present weights and optimizer state.

Parameters
----------
X : array-like or sparse matrix of shape (n_samples, n_features)
y : array-like of shape (n_samples,) or (n_samples, n_outputs)
sample_weight : array-like of shape (n_samples,), optional"""

_NOTES = """\
Notes
-----
With scikit-learn's own parameters a run is scikit-learn's run, to rounding: initial weights,
split and orders are drawn as there. So are its peculiarities: the loss of several regression
targets is reported as an average over them while its gradient is that of the sum; probabilities
are clipped in the loss but not in its gradient; sample weights do not influence which rows are
held out; with `warm_start` and `early_stopping`, a ``fit`` that finds no better score than those
before ends with its last weights. Different is: a loss that becomes NaN or infinite ends training
at once; going on with other hidden layers is an error; a batch whose weights are all zero teaches
nothing, in place of an error; a failing ``fit`` changes nothing."""

TEXTS = {
    "parameters": _PARAMETERS,
    "attributes": _ATTRIBUTES,
    "notes": _NOTES,
    "fit": _FIT,
    "partial_fit": _PARTIAL_FIT,
}
