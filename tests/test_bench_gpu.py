"""The GPU benchmark's contenders do the same, on the CPU; and what it says without a GPU."""

import json

import pytest
from click.testing import CliRunner

from bench import gpu, gpu_tasks
from bench.__main__ import main
from bench.gpu_contenders import Memory, Products, Task, Xpmlp, XpmlpEager
from bench.gpu_peers import Jax, Torch, TorchCompiled, TorchGraph
from bench.gpu_tasks import UnequalLosses, check, make_run, measure, report, tasks
from xpmlp import available_backends, get_backend

TINY = Task((5, 8, 6, 3), batch=16, steps=10, batches=3, device="cpu")
without_a_gpu = pytest.mark.skipif(
    available_backends().get("cupy") == "usable", reason="there is a GPU"
)


def test_contenders_take_the_same_steps():
    trained = [c for c in (Xpmlp, XpmlpEager, Torch, Jax) if c.missing(TINY) is None]
    runs = {contender.name: make_run(contender, TINY) for contender in trained}
    for _ in range(3):  # each call goes on where the one before has ended
        losses = {name: run() for name, run in runs.items()}
        for loss in losses.values():
            assert loss == pytest.approx(losses["xpmlp"], rel=1e-4)
    assert len(losses) > 1


def test_measurements_are_a_record_and_a_table():
    contenders = (Xpmlp, XpmlpEager, TorchGraph, Products, Memory)
    case = measure(TINY, contenders, rounds=2)
    json.dumps(case)
    assert set(case["contenders"]) == {"xpmlp", "xpmlp, eager", "products alone", "memory alone"}
    assert TorchGraph.name in case["missing"]
    for one in case["contenders"].values():
        assert len(one["seconds"]) == 2
        assert one["microseconds_a_step"] > 0
    page = report([case])
    assert "### 5-8-6-3, batch 16, ieee" in page
    assert "| products alone |" in page
    assert "Missing: PyTorch, torch.cuda.graph" in page


def test_a_contender_that_fails_is_missing():
    unknown = Task((5, 3), 4, 2, precision="no such", device="cpu")
    with pytest.raises(UnequalLosses, match="no contender"):
        measure(unknown, (Xpmlp,), 1)


@pytest.mark.parametrize("losses", [{"one": 0.5, "other": 0.6}, {"one": float("nan")}, {}])
def test_unequal_losses_give_no_times(losses):
    with pytest.raises(UnequalLosses):
        check(TINY, losses)


def test_every_case_of_the_matrix_is_a_task():
    made = tasks(gpu_tasks.MATRIX, ["ieee", "tf32"])
    assert len(made) == 2 * 6
    assert len({task.name for task in made}) == 12
    (own,) = tasks([(3, 4, 2)], ["ieee"], [32])
    assert (own.batch, own.steps) == (32, 64)


@without_a_gpu
def test_without_a_gpu_one_line_says_so():
    done = CliRunner().invoke(main, ["gpu"])
    assert done.exit_code == 1
    assert done.stderr.startswith("no GPU to measure on: ")
    assert len(done.stderr.splitlines()) == 1
    assert TorchCompiled.missing(Task((5, 3), 4, 2)) is not None


def test_where_there_is_one_tables_are_printed_and_written(tmp_path, monkeypatch):
    on_cpu = get_backend("cpu", "numpy")
    monkeypatch.setattr("xpmlp.available_backends", lambda: {"cupy": "usable"})
    monkeypatch.setattr("xpmlp.get_backend", lambda *args, **options: on_cpu)
    monkeypatch.setattr(gpu, "tasks", lambda shapes, precisions, batches: [TINY])
    monkeypatch.setattr(gpu, "CONTENDERS", (Xpmlp, Products))
    monkeypatch.setattr(gpu, "WHOLE", TINY)
    arguments = ["gpu", "--rounds", "2", "--out", str(tmp_path)]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "gpu.json").read_text())
    (case,) = record["cases"]
    assert set(case["contenders"]) == {"xpmlp", "products alone"}
    assert record["fit_from_numpy"]["rows"] == 48
    assert "### 5-8-6-3, batch 16, ieee" in done.stdout
    assert (tmp_path / "gpu.md").read_text() == done.stdout
    done = CliRunner().invoke(main, [*arguments, "--precision", "half"])
    assert done.exit_code == 2
    assert "expected some of ieee,tf32,bfloat16, got 'half'" in done.output
