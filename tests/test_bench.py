"""The benchmark's programs, on problems so small that their figures mean nothing."""

import json
import os
import shutil
from contextlib import ExitStack

import click
import numpy as np
import pytest
from click.testing import CliRunner

from bench import cpu, faults, imports, memory, predict, scaling
from bench.__main__ import main
from bench.contenders import Products, ScikitLearn, WithoutNumba, Xpmlp, make_fit
from bench.environment import environment
from bench.peers import Jax, JaxProducts, Torch, TorchFused, TorchProducts
from bench.problem import Problem, parse_shape
from bench.profile import STAGES, Clock, profile
from bench.report import steps_report
from bench.workers import Worker, paired_ratio

TINY = Problem((5, 8, 6, 2), batch=16, rows=200, dtype="float64")  # with a smaller last batch


def test_contenders_have_the_same_loss_to_rounding():
    contenders = (Xpmlp, WithoutNumba, ScikitLearn, Torch, TorchFused, Jax)
    with ExitStack() as stack:
        workers = {
            contender.name: stack.enter_context(Worker(contender.hidden))
            for contender in contenders
            if contender.missing() is None
        }
        first_calls, losses = cpu.first_calls_of(workers, TINY)
    assert set(first_calls) == set(losses) == set(workers)
    assert len(losses) > 1
    cpu.check_quality(losses, TINY)


@pytest.mark.parametrize(
    "losses", [[0.5 * (1 + 1e-7), 0.4], [0.5, 0.41], [0.5, float("nan")], [float("inf"), 0.4]]
)
def test_unequal_losses_give_no_times(losses):
    with pytest.raises(click.ClickException, match="unequal quality"):
        cpu.check_quality({"one": [0.5, 0.4], "other": losses}, TINY)


def test_several_epochs_of_a_call_are_the_same_for_all():
    thrice = Problem(TINY.widths, TINY.batch, TINY.rows, epochs=3, dtype="float64")
    assert thrice.steps == 39
    fits = {c.name: make_fit(c, thrice, False, cpu.CHECK_EPSILON) for c in (Xpmlp, ScikitLearn)}
    for _ in range(2):  # the second goes on with the same parameters
        losses = {name: fit() for name, fit in fits.items()}
        assert len(losses["xpmlp"]) == len(losses["scikit-learn"]) == 3
        cpu.check_quality(losses, thrice)


def test_the_bare_products_are_the_same_for_all():
    found = []
    for contender in (Products, TorchProducts, JaxProducts):
        if contender.missing() is None:
            products = contender(TINY, *TINY.data(), *TINY.parameters())
            assert products.fit() == []
            found.append([np.asarray(gradient) for gradient in products.gradients])
    for gradients in found:
        for first, other in zip(found[0], gradients, strict=True):
            np.testing.assert_allclose(other, first, rtol=1e-12, atol=1e-12)


def test_cpu_prints_and_writes(tmp_path):
    arguments = ["cpu", "--peers", "sklearn", "--shapes", "5-8-2", "--batch", "50", "--rows", "200"]
    arguments += ["--rounds", "2", "--epochs", "2", "--profile", "--out", str(tmp_path)]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "cpu-float32.json").read_text())
    (case,) = record["cases"]
    assert (case["steps"], case["data"]) == (8, "synthetic")
    names = set(case["contenders"]) | set(record["missing"])
    assert names == {"xpmlp", "xpmlp without Numba", "scikit-learn", "GEMMs alone"}
    for found in case["contenders"].values():
        assert len(found["seconds"]) == 2
        assert found["microseconds_a_step"] == pytest.approx(np.mean(found["seconds"]) / 8e-6)
    assert case["contenders"]["GEMMs alone"]["to_products"] == 1
    assert "| scikit-learn |" in done.stdout
    assert "Equal quality" in done.stdout
    assert (tmp_path / "cpu-float32.png").stat().st_size > 0


def test_what_is_missing_is_named_with_its_reason():
    class Abacus(Xpmlp):
        name = "abacus"
        library = "no_such_library"

    assert Abacus.missing() == "no_such_library is not installed"
    record = {
        "environment": environment(),
        "configuration": dict.fromkeys(
            ("dtype", "activations", "loss", "optimizer", "rounds"), "-"
        ),
        "missing": {"abacus": Abacus.missing()},
        "cases": [],
    }
    assert "Missing: abacus (no_such_library is not installed)." in steps_report(record)


@pytest.mark.parametrize("text", ["784", "5-2", "5-a-2", "5-0-2", "5-8-1"])
def test_a_shape_that_is_none(text):
    with pytest.raises(click.BadParameter, match="such as 784-256-128-10"):
        parse_shape(text)


def test_a_worker_hides_packages_and_tells_errors():
    with Worker(("numba",)) as worker:
        assert worker.call(WithoutNumba.missing) == "numba is not installed: it is xpmlp itself"
        with pytest.raises(click.BadParameter):
            worker.call(parse_shape, "784")


def test_a_slow_round_does_not_move_a_ratio():
    assert paired_ratio([2.0, 200.0, 2.2], [1.0, 100.0, 1.0]) == 2.0


def test_a_stage_counts_without_the_stages_inside_it(monkeypatch):
    seconds = 0.0

    def passes(more):
        nonlocal seconds
        seconds += more

    monkeypatch.setattr("bench.profile.perf_counter", lambda: seconds)
    clock = Clock()
    inner = clock.timed("forward", lambda: passes(2.0))
    clock.timed("loss", lambda: (inner(), passes(1.0)))()
    assert (clock.seconds["forward"], clock.seconds["loss"]) == (2.0, 1.0)


def test_every_stage_of_the_profile_takes_time():
    with Worker(WithoutNumba.hidden) as worker:
        found = worker.call(profile, TINY)
    assert set(found) == {*STAGES, "rest"}
    assert min(found.values()) > 0


def test_predictions_are_equal():
    names = [name for name, c in predict.PREDICTORS.items() if c.missing() is None]
    problem = Problem((5, 8, 2), batch=16, rows=200)
    found = predict.measure(names, problem, rounds=1)
    assert list(found) == names
    assert all(each["difference"] <= predict.TOLERANCE for each in found.values())
    assert found["xpmlp"]["peak_megabytes"] > 0


def test_fit_takes_the_memory_it_may_from_any_type():
    problem = Problem((50, 8, 2), batch=200, rows=20_000)
    peaks = [memory.measure(problem, given)["peak_megabytes"]["xpmlp"] for given in memory.INPUTS]
    assert max(peaks) < 20_000 * 50 / 1e6  # X in uint8


def test_scaling_fits_a_line(monkeypatch):
    monkeypatch.setattr(scaling, "SECONDS", 0.01)
    monkeypatch.setattr(
        scaling, "interleave", lambda workers, _: {n: [int(n) ** 2.0] for n in workers}
    )
    found = scaling.measure("depth", [1, 2], rounds=1)
    assert found["exponent"] == pytest.approx(2)
    assert found["factor"] == pytest.approx(1)


def _may_mount():
    return hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("mount") is not None


@pytest.mark.parametrize("name", faults.DRILLS)
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="not a Linux system")
def test_what_is_promised_of_faults_holds(name):
    if name == "disk full" and not _may_mount():
        pytest.skip("only root may mount a small disk")
    found = faults.run(name, share=0.02, seed=1)
    assert found["holds"], found


@pytest.mark.parametrize(
    ("found", "bounds", "holds"),
    [
        ({"tried": 3, "held": 3}, {}, True),
        ({"tried": 3, "held": 2}, {}, False),
        ({"tried": 0, "held": 0}, {}, False),
        ({"tried": 3, "held": 3, "megabytes": 5.0}, {"megabytes": 4.0}, False),
        (RuntimeError("no disk"), {}, False),
    ],
)
def test_what_does_not_hold_is_said(monkeypatch, tmp_path, found, bounds, holds):
    class Here(Worker):
        def call(self, function, *arguments):
            return function(*arguments)

    def does(folder, n, seed):
        if isinstance(found, Exception):
            raise found
        return {"outcomes": {}, **found}

    monkeypatch.setattr(faults, "Worker", Here)
    monkeypatch.setattr(faults, "DRILLS", {"a fault": faults.Drill(does, 3, "holds", bounds)})
    done = CliRunner().invoke(main, ["faults", "--out", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == (0 if holds else 1)
    assert ("did not hold: a fault" in done.output) != holds
    assert json.loads((tmp_path / "faults.json").read_text())["drills"]["a fault"]["holds"] == holds


def test_imports_and_first_fits():
    assert min(imports.import_seconds(1).values()) > 0
    found = imports.first_fits(TINY, 1)
    assert list(found["seconds"]) == ["cold cache", "warm cache", "without Numba"]
    for times in found["seconds"].values():
        assert min(times.values()) > 0
