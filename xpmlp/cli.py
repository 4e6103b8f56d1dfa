"""The command line: train, predict, devices, verify."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np

from xpmlp import __version__
from xpmlp.activations import ACTIVATIONS
from xpmlp.backends import available_backends, backend_class, get_backend
from xpmlp.callbacks import Callback, EarlyStopping
from xpmlp.checkpoint import Checkpoint
from xpmlp.datasets import Table, load_table
from xpmlp.errors import (
    BackendUnavailableError,
    NonFiniteLossError,
    check_number,
    printable,
    unknown_name,
)
from xpmlp.experiment import (
    encode_target,
    make_layers,
    make_optimizer,
    network_targets,
    scores_of,
    split_rows,
    target_scaling,
)
from xpmlp.export import export_onnx
from xpmlp.files import write_atomically
from xpmlp.history import History
from xpmlp.initializers import INITIALIZERS
from xpmlp.losses import LOSSES, Loss
from xpmlp.names import parse
from xpmlp.network import Network
from xpmlp.optimizers import OPTIMIZERS
from xpmlp.pipeline import Pipeline, affine_scaling
from xpmlp.schedules import SCHEDULES
from xpmlp.serialization import load, save
from xpmlp.testing import overrides, participants, reference_of
from xpmlp.training import fit
from xpmlp.verify import MOST_STEPS, STEPS, Report
from xpmlp.verify import verify as compare_runs

PICTURES = ("png", "svg", "pdf")
# Exit codes, as shells give them to programs that a signal has ended.
ENDED_BY: dict[str | None, int] = {"interrupted": 130, "terminated": 143}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 if all is well, 2 for a user's error, 1 if a run failed."""
    warnings.showwarning = _show_warning
    try:
        code = cli.main(arguments, prog_name="xpmlp", standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        code = 2
    except click.ClickException as error:
        code = _complain(error.format_message(), 2)
    except (ValueError, TypeError, BackendUnavailableError, ImportError, MemoryError) as error:
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


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="xpmlp")
def cli() -> None:
    """Multilayer perceptrons on NumPy (CPU), CuPy (CUDA GPU) or PyTorch's devices."""


@cli.command(short_help="Train a network on a table and score it on unseen rows.")
@click.argument("data")
@click.option("--target", help="Target column.  [default: the last one]")
@click.option("--drop", help="Columns to leave out, separated by commas.")
@click.option(
    "--task",
    type=click.Choice(["auto", "classification", "regression"]),
    default="auto",
    help="auto: classification for text and for at most 20 distinct whole numbers.",
)
@click.option("--hidden", default="64,32", help="Units of the hidden layers; '' for none.")
@click.option(
    "--activation",
    default="relu",
    help=f"One for all hidden layers, or one each: {', '.join(ACTIVATIONS)}.",
)
@click.option("--dropout", default="0", help="Drop rate, one for all hidden layers or one each.")
@click.option("--bias/--no-bias", default=True, help="Whether layers have a bias.")
@click.option(
    "--init", help=f"Initial weights: {', '.join(INITIALIZERS)}.  [default: by activation]"
)
@click.option(
    "--loss",
    help=f"{', '.join(LOSSES)}.  [default: log_loss, or squared_error for a regression]",
)
@click.option(
    "--optimizer",
    default="adam",
    help=f"{', '.join(OPTIMIZERS)}. This and other names take arguments: adam:beta_2=0.99.",
)
@click.option("--lr", type=float, help="Learning rate.  [default: the optimizer's]")
@click.option(
    "--schedule",
    help=f"Of the learning rate, over updates, not epochs: {', '.join(SCHEDULES)}.",
)
@click.option("--alpha", type=float, default=0.0, help="L2 penalty.")
@click.option("--l1", type=float, default=0.0, help="L1 penalty.")
@click.option("--clip-norm", type=float, help="Largest norm of the gradient.")
@click.option("--batch-size", type=int, default=32, help="Rows of a batch.")
@click.option("--epochs", type=int, default=100, help="Passes over the training data.")
@click.option("--validation", type=float, default=0.0, help="Part of the training rows held out.")
@click.option("--patience", type=int, help="Stop after so many epochs without better validation.")
@click.option(
    "--scale",
    type=click.Choice(["minmax", "standard", "none"]),
    default="standard",
    help="Scaling of the features.",
)
@click.option(
    "--test-size", type=float, help="Part of the rows for the test.  [default: 0.25; xor: 0]"
)
@click.option("--split-seed", type=int, help="Seed of the split.  [default: --seed]")
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
@click.option(
    "--checkpoint",
    type=click.Path(file_okay=False),
    help="Folder for the state after each epoch, from which --resume goes on.",
)
@click.option(
    "--resume",
    type=click.Path(),
    help="Go on from this checkpoint, or the newest of this folder, with the same options; "
    "--epochs may be more.",
)
@click.option("--quiet", is_flag=True, help="No progress bar.")
def train(data: str, **options: Any) -> int:
    """Train a network on DATA and report how well it does on rows it has not seen.

    DATA is breast_cancer, diabetes, digits, iris, wine or xor, or a file: .csv, separated by
    commas, the first row naming the columns unless it is all numbers; .npy, a matrix; .npz, with X
    and y. Features are numbers without gaps; a target may be text. In a regression a target is
    standardised for squared_error, absolute_error, huber (its delta too) and quantile, and scores
    are in its own units.
    """
    _check_output("--out", options["out"])
    _check_output("--plot", options["plot"], PICTURES)
    _check_different("--out", options["out"], options["plot"])
    check_number("--seed", options["seed"], minimum=0, integer=True)
    table = load_table(data)
    target = options["target"] or table.target or table.columns[-1]
    dropped = [name.strip() for name in (options["drop"] or "").split(",") if name.strip()]
    for name in dropped:
        table.column(name)
    classes, y = encode_target(table, target, options["task"])
    features = [name for name in table.columns if name not in (target, *dropped)]
    X = table.features(features)
    loss: Loss = parse(
        "loss", options["loss"] or ("log_loss" if classes else "squared_error"), LOSSES
    )
    layers = make_layers(
        options["hidden"],
        options["activation"],
        options["dropout"],
        options["bias"],
        options["init"],
        classes,
        loss,
    )
    optimizer = make_optimizer(options["optimizer"], options["lr"], options["schedule"])
    rows = split_rows(
        len(X),
        table.test_size if options["test_size"] is None else options["test_size"],
        options["validation"],
        options["seed"] if options["split_seed"] is None else options["split_seed"],
    )
    if options["patience"] is not None and not len(rows["validation"]):
        raise ValueError("--patience needs held-out rows: give --validation, such as 0.1")
    callbacks: list[Callback] = []
    if options["patience"] is not None:
        callbacks.append(EarlyStopping(patience=options["patience"]))
    resume, folder = options["resume"], options["checkpoint"]
    if resume and not folder:
        folder = resume if Path(resume).is_dir() else Path(resume).parent
    if folder:
        callbacks.append(Checkpoint(folder))
    network = Network(
        len(features),
        layers,
        device=options["device"],
        backend=options["backend"],
        dtype=str(X.dtype) if options["dtype"] == "auto" else options["dtype"],
        seed=options["seed"],
    )
    pipeline = Pipeline(
        network,
        features,
        target,
        classes,
        *affine_scaling(options["scale"], X[rows["train"]]),
        *target_scaling(classes, loss, y[rows["train"]]),
    )
    parts = {part: (X[chosen], y[chosen]) for part, chosen in rows.items() if len(chosen)}
    prepared = {
        part: (pipeline.scale(X_part), network_targets(pipeline, loss, y_part))
        for part, (X_part, y_part) in parts.items()
    }
    watched = next((part for part in ("validation", "test") if part in parts), None)
    history = fit(
        network,
        *prepared["train"],
        loss=loss,
        optimizer=optimizer,
        epochs=options["epochs"],
        batch_size=options["batch_size"],
        validation=prepared[watched] if watched else None,
        alpha=options["alpha"],
        l1=options["l1"],
        clip_norm=options["clip_norm"],
        metrics=["accuracy"] if classes else [],
        callbacks=callbacks,
        verbose=0 if options["quiet"] else 1,
        resume=resume,
    )
    if options["out"]:
        save(pipeline, options["out"])  # before anything is printed, which may fail
    if options["plot"]:
        title = f"{table.name} on {network.device}"
        title += f" (validation curves: the {watched} rows)" if watched else ""
        write_atomically(options["plot"], draw([history], title, options["plot"]))
    _report(table, pipeline, loss, history, parts)
    for kind, path in (("model", options["out"]), ("plot", options["plot"])):
        if path:
            click.echo(f"{kind:<8} {path}")
    return ENDED_BY.get(history.stopped, 0)


@cli.command(short_help="Predict the rows of a table with a trained model.")
@click.argument("model", type=click.Path())
@click.argument("data")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, allow_dash=True),
    default="-",
    help="CSV file; - for here.",
)
@click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
def predict(model: str, data: str, out: str, device: str) -> None:
    """Predict the rows of DATA with a MODEL that 'train' wrote.

    Columns are found by name, and others left aside. The output has the prediction and, for
    classes, their probabilities. Names of classes are written as they are; on a terminal without
    what would control it.
    """
    if out != "-":
        _check_output("--out", out)
    pipeline = load(model, device)
    if not isinstance(pipeline, Pipeline):
        raise ValueError(
            f"{model} holds a {type(pipeline).__name__} without the names and scales of its "
            "columns; use it in Python, by xpmlp.load"
        )
    X = load_table(data).features(pipeline.features)
    output = pipeline.output(X)
    predicted = pipeline.decode(output)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if pipeline.classes is None:
        writer.writerow([pipeline.target])
        writer.writerows([f"{value:.9g}"] for value in predicted)
    else:
        if output.shape[1] == 1:
            output = np.concatenate([1.0 - output, output], axis=1)
        writer.writerow([pipeline.target, *(f"p({name})" for name in pipeline.classes)])
        for number, row in zip(predicted, output, strict=True):
            writer.writerow([pipeline.classes[number], *(f"{value:.6g}" for value in row)])
    if out == "-":
        shown = text.getvalue()
        if sys.stdout.isatty():  # not where it goes to a program or a file
            shown = "".join(f"{printable(line)}\n" for line in shown.split("\n")[:-1])
        click.echo(shown, nl=False, color=True)  # which leaves it as it is
    else:
        write_atomically(out, text.getvalue().encode())
        click.echo(f"{len(X)} predictions written to {out}")


@cli.command(short_help="Write a trained model as ONNX.")
@click.argument("model", type=click.Path())
@click.argument("out", type=click.Path(dir_okay=False))
def export(model: str, out: str) -> None:
    """Write a MODEL, with its scaling, as ONNX to OUT, for other programs. It computes in float32.

    The input is X, float32 of shape (n, n_features); the outputs are label and probabilities, or
    prediction.
    """
    _check_output("OUT", out)
    export_onnx(load(model, "cpu"), out)
    click.echo(f"onnx     {out}")


@cli.command(short_help="Show adapters, devices and free memory.")
def devices() -> None:
    """Show every adapter: its version, devices and free memory, or why it cannot be used."""
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


@cli.command(short_help="Compare the runs of all adapters and devices of this machine.")
@click.option(
    "--backends",
    help="Only these, separated by commas, such as numpy:cpu,torch:cpu.  [default: all usable]",
)
@click.option("--steps", default=STEPS, help="Steps of each run.")
@click.option(
    "--against",
    type=click.Choice(["each-other", "reference"]),
    default="each-other",
    help="reference: each adapter with its own library's reference path.",
)
@click.option("--json", "json_path", help="Write everything to this file.")
@click.option("--plot", help="Draw the drift over the steps to this .png, .svg or .pdf.")
def verify(
    backends: str | None, steps: int, against: str, json_path: str | None, plot: str | None
) -> int:
    """Train the same networks everywhere and compare, tensor by tensor.

    Covers every activation, loss and optimizer, in float64 and float32: gradients against finite
    differences, one step, a whole run, the same run twice, random numbers, and transfers inside a
    step. The first tensor that differs is named with its layer, step and values. The exit code is 0
    if all agree, 1 if not, and 2 if there was nothing to compare.
    """
    check_number("--steps", steps, minimum=1, maximum=MOST_STEPS, integer=True)
    _check_output("--json", json_path)
    _check_output("--plot", plot, PICTURES)
    _check_different("--json", json_path, plot)
    found = participants()
    chosen = backends.split(",") if backends else [*found]
    twice = sorted({name for name in chosen if chosen.count(name) > 1})
    if twice:
        raise ValueError(f"--backends names {twice[0]!r} more than once")
    if backends:
        for name in chosen:
            state = available_backends().get(name.partition(":")[0], "usable")
            if state != "usable":
                raise ValueError(f"--backends={name}: {state}")
            if name not in found:
                raise unknown_name("--backends", name, found)
        found = {name: found[name] for name in chosen}
    else:
        for name, state in available_backends().items():
            if state != "usable":
                click.echo(f"left out: {name} ({state})")
    if against == "reference":
        # Where nothing is overridden, that would be a comparison with itself.
        own = {name: backend for name, backend in found.items() if overrides(backend)}
        for name in found.keys() - own.keys():
            click.echo(f"left out: {name} (it is its library's reference path)")
        groups = [{name: b, f"{name} by reference": reference_of(b)} for name, b in own.items()]
        if not own:
            raise ValueError("nothing to compare: no adapter has primitives of its own")
    else:
        groups = [found]
        if plot and len(found) < 2:
            raise ValueError("--plot needs two adapters to compare, or --against reference")
    reports = []
    for group in groups:
        report = compare_runs(group, steps=steps, progress=_progress)
        reports.append(report)
        click.echo(report)
    if json_path:
        content = json.dumps([report.to_dict() for report in reports], indent=1)
        write_atomically(json_path, content.encode())
    if plot:
        write_atomically(plot, draw(reports, "how far runs drift apart", plot))
    if any(report.faults for report in reports):
        return 1
    return 0 if all(report.comparisons for report in reports) else 2


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}\r", end="", file=sys.stderr, flush=True)


def draw(subjects: Sequence[History | Report], title: str, path: str) -> bytes:
    """A picture of what can plot itself, as the content of a file of the kind of `path`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    ax = figure.subplots()
    for subject in subjects:
        subject.plot(ax)
    figure.suptitle(title, fontsize="medium")
    picture = io.BytesIO()
    figure.savefig(picture, format=Path(path).suffix[1:], dpi=120)
    return picture.getvalue()


def _report(
    table: Table,
    pipeline: Pipeline,
    loss: Loss,
    history: History,
    parts: dict[str, tuple[Any, Any]],
) -> None:
    network, classes = pipeline.network, pipeline.classes
    what = f"{len(classes)} classes" if classes else "regression"
    click.echo(
        f"data     {table.name}: {len(table)} rows, {network.n_features} features, "
        f"target {pipeline.target!r} ({what})"
    )
    click.echo(f"network  {' -> '.join(str(layer) for layer in network.layers)}")
    click.echo(
        f"         {network.n_parameters:,} parameters of {network.dtype}, seed {network.seed}"
    )
    click.echo(f"device   {network.device} ({network.backend.version()})")
    of_what = " of the standardised target" if pipeline.target_scale != 1.0 else ""
    ended = f"; {history.stopped}" if history.stopped else ""
    click.echo(
        f"trained  {history.n_epochs} epochs, {loss.name} {history['loss'][-1]:.4g}{of_what}{ended}"
    )
    scores = {part: scores_of(pipeline, *data) for part, data in parts.items()}
    click.echo(f"{'':<12}{'rows':>7}" + "".join(f"{name:>11}" for name in scores["train"]))
    for part, values in scores.items():
        cells = "".join(f"{value:>11.4g}" for value in values.values())
        click.echo(f"  {part:<10}{len(parts[part][1]):>7}{cells}")


def _check_different(option: str, path: str | None, plot: str | None) -> None:
    if path and path == plot:
        raise ValueError(f"{option} and --plot must be different files, got {path} twice")


def _check_output(option: str, path: str | None, kinds: tuple[str, ...] = ()) -> None:
    """Refuse, before any work is done, a file that could not be written at its end."""
    if not path:
        return
    if Path(path).is_dir():
        raise ValueError(f"{option}={path} is a folder, expected a file")
    if Path(path).exists() and not Path(path).is_file():
        return  # a pipe or a terminal
    folder = Path(path).parent
    if not folder.is_dir():
        raise ValueError(f"{option}={path}: the folder {folder} does not exist")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{option}={path}: the folder {folder} is read-only")
    if kinds:
        if Path(path).suffix[1:] not in kinds:
            raise ValueError(f"{option}={path}: the ending must be one of {', '.join(kinds)}")
        if find_spec("matplotlib") is None:
            raise ValueError(f"{option} needs matplotlib: pip install 'xpmlp[plot]'")


def _complain(message: str, code: int) -> int:
    print(f"xpmlp: error: {printable(' '.join(message.split()))}", file=sys.stderr)
    return code


def _show_warning(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
    text = printable(" ".join(str(message).split()))
    print(f"xpmlp: {category.__name__}: {text}", file=sys.stderr)
