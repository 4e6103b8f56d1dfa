"""The command line: train, predict, devices."""

from __future__ import annotations

import csv
import io
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import click
import numpy as np

from xpmlp import __version__
from xpmlp.backends import available_backends, backend_class, get_backend
from xpmlp.callbacks import EarlyStopping
from xpmlp.data import batch_rows
from xpmlp.datasets import load_table
from xpmlp.errors import BackendUnavailableError, NonFiniteLossError
from xpmlp.experiment import (
    encode_target,
    make_layers,
    make_optimizer,
    network_targets,
    scores_of,
    split_rows,
)
from xpmlp.history import History
from xpmlp.losses import LOSSES, Loss
from xpmlp.names import parse
from xpmlp.network import Network
from xpmlp.pipeline import Pipeline, affine_scaling
from xpmlp.serialization import write_atomically
from xpmlp.training import fit

# Losses that suit a target of any location and scale, so that a regression may standardise it.
_SCALED_LOSSES = ("squared_error", "absolute_error", "quantile")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 if all is well, 2 for a user's error, 1 if a run failed."""
    warnings.showwarning = _show_warning
    try:
        cli.main(arguments, prog_name="xpmlp", standalone_mode=False)
        code = 0
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        code = 2
    except click.ClickException as error:
        code = _complain(error.format_message(), 2)
    except (ValueError, TypeError, BackendUnavailableError, ImportError) as error:
        code = _complain(str(error), 2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        code = _complain(f"{error.filename}: {error.strerror}" if error.filename else str(error), 2)
    except NonFiniteLossError as error:
        code = _complain(str(error), 1)
    except (KeyboardInterrupt, click.Abort):
        code = _complain("interrupted", 130)
    sys.exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="xpmlp")
def cli() -> None:
    """Multilayer perceptrons on NumPy (CPU) or CuPy (CUDA GPU)."""


@cli.command()
@click.argument("data")
@click.option("--target", help="Target column. Default: the last one.")
@click.option(
    "--task",
    type=click.Choice(["auto", "classification", "regression"]),
    default="auto",
    help="auto: classification for text and for at most 20 distinct whole numbers.",
)
@click.option("--hidden", default="64,32", help="Units of the hidden layers; '' for none.")
@click.option("--activation", default="relu", help="One for all hidden layers, or one each.")
@click.option("--dropout", default="0", help="Drop rate, one for all hidden layers or one each.")
@click.option("--bias/--no-bias", default=True, help="Whether layers have a bias.")
@click.option("--init", help="Initial weights. Default: what suits the activation.")
@click.option("--loss", help="Default: log_loss, or squared_error for a regression.")
@click.option("--optimizer", default="adam", help="With options: adam:beta_2=0.99,amsgrad=true.")
@click.option("--lr", type=float, help="Learning rate. Default: the optimizer's.")
@click.option("--schedule", help="Of the learning rate, such as cosine or step:gamma=0.5.")
@click.option("--alpha", type=float, default=0.0, help="L2 penalty.")
@click.option("--l1", type=float, default=0.0, help="L1 penalty.")
@click.option("--clip-norm", type=float, help="Largest norm of the gradient.")
@click.option("--batch-size", type=int, default=32, help="Rows of a batch.")
@click.option("--epochs", type=int, default=100, help="Passes over the training data.")
@click.option("--validation", type=float, default=0.0, help="Part of the training data held out.")
@click.option("--patience", type=int, help="Stop after so many epochs without better validation.")
@click.option(
    "--scale",
    type=click.Choice(["minmax", "standard", "none"]),
    default="standard",
    help="Scaling of the features.",
)
@click.option(
    "--test-size", type=float, default=0.25, help="Part of the data for the test; may be 0."
)
@click.option("--split-seed", type=int, help="Seed of the split. Default: --seed.")
@click.option("--seed", type=int, default=0, help="Seed of weights, shuffles and dropout.")
@click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
@click.option("--backend", help="Adapter, see 'xpmlp devices'.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "float64"]),
    default="auto",
    help="auto: float32 for float32 data, otherwise float64.",
)
@click.option("--out", type=click.Path(dir_okay=False), help="Write model and scaler here.")
@click.option("--plot", type=click.Path(dir_okay=False), help="Draw the curves of training here.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def train(data: str, **options: Any) -> None:
    """Train a network on DATA and report how well it does on rows it has not seen.

    DATA is a .csv, .npy or .npz file, or one of breast_cancer, diabetes, digits, iris, wine, xor.
    """
    for option in ("out", "plot"):
        _check_folder(option, options[option])
    table = load_table(data)
    target = options["target"] or table.target or table.columns[-1]
    classes, y = encode_target(table, target, options["task"])
    features = [name for name in table.columns if name != target]
    X = table.features(features)
    name = options["loss"] or ("log_loss" if classes else "squared_error")
    loss: Loss = parse("loss", name, LOSSES)
    seed = options["seed"]
    split_seed = seed if options["split_seed"] is None else options["split_seed"]
    rows = split_rows(len(X), options["test_size"], options["validation"], split_seed)
    y_shift, y_scale = 0.0, 1.0
    if classes is None and loss.name in _SCALED_LOSSES:
        y_shift, y_scale = float(y[rows["train"]].mean()), float(y[rows["train"]].std()) or 1.0
    network = Network(
        len(features),
        make_layers(
            options["hidden"],
            options["activation"],
            options["dropout"],
            options["bias"],
            options["init"],
            classes,
            loss,
        ),
        device=options["device"],
        backend=options["backend"],
        dtype=str(X.dtype) if options["dtype"] == "auto" else options["dtype"],
        seed=seed,
    )
    shift, factor = affine_scaling(options["scale"], X[rows["train"]])
    pipeline = Pipeline(network, features, target, classes, shift, factor, y_shift, y_scale)
    prepared = {
        part: (pipeline.scale(X[chosen]), network_targets(pipeline, loss, y[chosen]))
        for part, chosen in rows.items()
        if len(chosen)
    }
    if options["patience"] is not None and "validation" not in prepared:
        raise ValueError("--patience needs held-out rows: give --validation, such as 0.1")
    batch_size = batch_rows(options["batch_size"], len(rows["train"]))
    n_steps = options["epochs"] * -(-len(rows["train"]) // batch_size)
    history = fit(
        network,
        *prepared["train"],
        loss=loss,
        optimizer=make_optimizer(options["optimizer"], options["lr"], options["schedule"], n_steps),
        epochs=options["epochs"],
        batch_size=batch_size,
        validation=prepared.get("validation", prepared.get("test")),
        alpha=options["alpha"],
        l1=options["l1"],
        clip_norm=options["clip_norm"],
        metrics=["accuracy"] if classes else [],
        callbacks=[EarlyStopping(patience=options["patience"])] if options["patience"] else [],
        verbose=0 if options["quiet"] else 1,
    )
    what = f"{len(classes)} classes" if classes else "regression"
    click.echo(
        f"data     {table.name}: {len(X)} rows, {len(features)} features, "
        f"target {target!r} ({what})"
    )
    click.echo(f"network  {' -> '.join(str(layer) for layer in network.layers)}")
    click.echo(f"         {network.n_parameters:,} parameters of {network.dtype}, seed {seed}")
    click.echo(f"device   {network.device} ({network.backend.version()})")
    ended = f"; {history.stopped}" if history.stopped else ""
    click.echo(f"trained  {len(history)} epochs, {loss.name} {history['loss'][-1]:.4g}{ended}")
    scores = {part: scores_of(pipeline, X[rows[part]], y[rows[part]]) for part in prepared}
    click.echo(f"{'':<12}{'rows':>7}" + "".join(f"{name:>11}" for name in scores["train"]))
    for part, values in scores.items():
        cells = "".join(f"{value:>11.4f}" for value in values.values())
        click.echo(f"  {part:<10}{len(rows[part]):>7}{cells}")
    if options["out"]:
        pipeline.save(options["out"])
        click.echo(f"model    {options['out']}")
    if options["plot"]:
        watched = next((part for part in ("validation", "test") if part in prepared), "none")
        title = f"{table.name} on {network.device} (val: {watched} rows)"
        write_atomically(options["plot"], draw(history, title, Path(options["plot"]).suffix[1:]))
        click.echo(f"plot     {options['plot']}")


@cli.command()
@click.argument("model", type=click.Path())
@click.argument("data")
@click.option("--out", type=click.Path(dir_okay=False), help="CSV file. Default: standard output.")
@click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
def predict(model: str, data: str, out: str | None, device: str) -> None:
    """Predict the rows of DATA with a MODEL that 'train' wrote.

    Columns are found by name. The output has the prediction and, for classes, their probabilities.
    """
    _check_folder("out", out)
    pipeline = Pipeline.load(model, device)
    X = load_table(data).features(pipeline.features)
    predicted = pipeline.predict(X)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if pipeline.classes is None:
        writer.writerow([pipeline.target])
        writer.writerows([repr(float(value))] for value in predicted)
    else:
        output = pipeline.output(X)
        if output.shape[1] == 1:
            output = np.concatenate([1.0 - output, output], axis=1)
        writer.writerow([pipeline.target, *(f"p({name})" for name in pipeline.classes)])
        for number, row in zip(predicted, output, strict=True):
            writer.writerow([pipeline.classes[number], *(f"{value:.6g}" for value in row)])
    if out:
        write_atomically(out, text.getvalue().encode())
        click.echo(f"{len(X)} predictions written to {out}")
    else:
        click.echo(text.getvalue(), nl=False)


@cli.command()
def devices() -> None:
    """Show every adapter: its version, its devices and their free memory, or why it is out."""
    for name, state in available_backends().items():
        if state != "usable":
            click.echo(f"{name:<8} not usable: {state}")
            continue
        adapter = backend_class(name)
        click.echo(f"{name:<8} {adapter.version()}")
        for device in adapter.devices():
            memory = get_backend(device, name).memory()
            free = f"{memory[0] / 2**30:.1f} of {memory[1] / 2**30:.1f} GiB free" if memory else ""
            click.echo(f"{'':<8}   {device:<8} {free}".rstrip())


def draw(history: History, title: str, kind: str) -> bytes:
    """A picture of a history as the content of a file; `kind` is ``"png"``, ``"svg"``, ..."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    history.plot(figure.subplots())
    figure.suptitle(title, fontsize="medium")
    picture = io.BytesIO()
    figure.savefig(picture, format=kind or "png", dpi=120)
    return picture.getvalue()


def _check_folder(option: str, path: str | None) -> None:
    if path and not Path(path).resolve().parent.is_dir():
        raise ValueError(f"--{option}={path}: the folder {Path(path).parent} does not exist")


def _complain(message: str, code: int) -> int:
    print(f"xpmlp: error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _show_warning(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
    print(f"xpmlp: {category.__name__}: {' '.join(str(message).split())}", file=sys.stderr)
