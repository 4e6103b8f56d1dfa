"""What only a machine with a GPU can show, in one run: ``make gpu-check``.

The tests on that backend, products and a short training in each precision, an array that is too
large, short runs on further GPUs and on those of PyTorch, if they are there, the comparison of its
runs with the CPU's, captured steps beside single ones, and the time of a training step, beside
other libraries' where they are installed. It needs no installation and no network: Python with
NumPy, CuPy and pytest, this checkout on PYTHONPATH, and array-api-compat, whose pure-Python wheel
can lie in a folder ``wheels/``. Every part is written down as it ends. Tests that need SciPy,
scikit-learn or click are skipped where these are missing, and counted.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
NEEDED = ("numpy", "array_api_compat", "pytest")
# Those that run on every backend of tests/conftest.py.
TESTS = [
    "activations",
    "backends",
    "consistency",
    "gradients",
    "initializers",
    "losses",
    "mistakes",
    "network",
    "optimizers",
    "precision",
    "rng",
    "smoke",
    "training",
    "verify",
    "worked_examples",
]
TRAINING = ["consistency", "optimizers", "precision", "training"]
SECONDS_OF_TESTS = 3600
WIDTHS, BATCH, STEPS = (784, 256, 128, 10), 128, 400
# Widths, batch, steps and precision of the tasks that are timed beside other libraries.
TIMED = [
    ((784, 256, 128, 10), 128, 1024, "ieee"),
    ((784, 256, 128, 10), 128, 1024, "tf32"),
    ((4096, 4096, 4096, 4096, 4096, 10), 8192, 8, "tf32"),
    ((4096, 4096, 4096, 4096, 4096, 10), 8192, 8, "bfloat16"),
]
# Widths, batch and samples of runs from host memory. The copy of a batch is the longer, then the
# shorter part of a step.
STREAMED = [((784, 256, 128, 10), 128, 60_000), ((784, 4096, 4096, 10), 1024, 60_000)]
EPOCHS = 5


def main() -> int:
    """Run everything and print a page; 0 if all is well, 1 if not, 2 if nothing could be run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="cupy", help="the adapter to be checked")
    parser.add_argument("--steps", type=int, default=200, help="steps of each compared run")
    parser.add_argument("--only", help="some parts, with commas between; default: all")
    parser.add_argument("--out", default="bench/results/gpu-check.json", help="the JSON file")
    arguments = parser.parse_args()
    wheels = [str(path) for path in sorted(ROOT.glob("wheels/*.whl"))]
    sys.path[:0] = [str(ROOT), str(ROOT / "backends"), *wheels]
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"missing: {', '.join(missing)}; put their wheels into {ROOT / 'wheels'}")
        return 2

    from xpmlp import available_backends, get_backend
    from xpmlp.backends import backend_class

    state = available_backends().get(arguments.backend, "not known")
    if state != "usable":
        print(f"{arguments.backend}: {state}")
        return 2
    from bench.environment import environment, write

    device = backend_class(arguments.backend).devices()[0]
    backend = get_backend(device, arguments.backend, fallback=False)
    record: dict[str, Any] = {
        "environment": environment(),
        "device": {"name": backend.device, "version": backend.version(), **card(backend)},
    }
    print(json.dumps(record["device"]))
    faults: list[str] = record.setdefault("faults", [])

    def section(name: str, run: Callable[[], Any]) -> None:
        """Run one part and write what is known by then; an error is a fault, not an end."""
        try:
            record[name] = run()
        except Exception as error:
            faults.append(f"{name}: {type(error).__name__}: {error}")
        write(Path(arguments.out), record)

    # What tells most comes first, and what may break the device for all that follows last.
    parts: dict[str, Callable[[], Any]] = {
        "products": lambda: check_products(backend),
        "captured": lambda: check_captured(backend),
        "nodes": lambda: count_nodes(backend),
        "microseconds_per_step": lambda: time_steps(backend),
        "streamed": lambda: time_streamed(backend),
        "bench": lambda: time_contenders(backend),
        "primitives": lambda: check_primitives(backend),
        "losses": lambda: train_in_each_precision(backend),
        "verify": lambda: compare(backend, arguments.steps),
        "other devices": lambda: check_others(backend),
        "tests captured": lambda: run_tests(arguments.backend, wheels, captured=True),
        "tests": lambda: run_tests(arguments.backend, wheels),
        "memory": lambda: run_out_of_memory(backend),
    }
    chosen = arguments.only.split(",") if arguments.only else list(parts)
    if unknown := set(chosen) - set(parts):
        parser.error(f"--only: expected some of {', '.join(parts)}, got {min(unknown)!r}")
    for name in chosen:
        section(name, parts[name])
    for name in ("tests captured", "tests"):
        counts = record.get(name)
        if counts and (not counts["passed"] or counts["failed"] or counts["errors"]):
            faults.append(f"{name}: {counts}")
    tests = record.get("tests", {})
    faults += record.get("verify", {}).get("faults", [])
    write(Path(arguments.out), record)
    reasons = tests.get("skipped because", {})
    if tests:
        print("\ntests    " + ", ".join(f"{n} {k}" for k, n in tests.items() if n is not reasons))
    print(*(f"  {n} skipped: {reason}" for reason, n in reasons.items()), sep="\n")
    for name, value in record.get("products", {}).items():
        print(f"a product in {name}: largest relative difference {value:.1e}")
    for name, value in record.get("primitives", {}).items():
        print(f"{name}: largest relative difference {value:.1e}")
    for name, value in record.get("microseconds_per_step", {}).items():
        print(
            f"{'-'.join(map(str, WIDTHS))}, float32, batch {BATCH}, {name}: {value:.0f} us a step"
        )
    for name, value in record.get("captured", {}).items():
        print(f"captured steps, {name}: parameters differ from single ones' by {value:.1e}")
    for name, (nodes, adding) in record.get("nodes", {}).items():
        print(f"a captured step, {name}: {nodes} nodes, {adding} products that add a bias")
    for one in record.get("streamed", []):
        print(
            f"{'-'.join(map(str, one['widths']))}, batch {one['batch']}: an epoch takes "
            f"{one['resident']:.3f} s with the samples on the device, {one['streamed']:.3f} s with "
            "them on the host"
        )
    if record.get("bench"):
        from bench.gpu_tasks import report

        print(f"\n{report(record['bench'])}\n")
    print(*(f"FAULT  {fault}" for fault in faults), sep="\n")
    print("NOT all is well" if faults else "all is well")
    return 1 if faults else 0


def card(backend: Any) -> dict[str, Any]:
    """Name and memory of the GPU, where CUDA tells them."""
    memory = backend.memory()
    found: dict[str, Any] = {"memory_bytes": memory[1] if memory else None}
    if backend.name == "cupy":
        import cupy

        found["card"] = cupy.cuda.runtime.getDeviceProperties(backend.index)["name"].decode()
    return found


def run_tests(name: str, wheels: list[str], captured: bool = False) -> dict[str, Any]:
    """Counts of the tests whose name has the backend's in it, and reasons of those skipped.

    With `captured` those that train, with steps captured in runs of any length.
    """
    with tempfile.TemporaryDirectory() as folder:
        junit = Path(folder) / "tests.xml"
        path = [str(ROOT), str(ROOT / "backends"), *wheels, os.environ.get("PYTHONPATH", "")]
        subprocess.run(
            [
                sys.executable, "-m", "pytest", "-q", "-k", name, f"--junitxml={junit}",
                "--continue-on-collection-errors", "-p", "no:cacheprovider",
                *(f"tests/test_{test}.py" for test in (TRAINING if captured else TESTS)),
            ],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, path)),
                **({"XPMLP_TEST_CAPTURED": "1"} if captured else {}),
            },
            check=False,
            timeout=SECONDS_OF_TESTS,
        )  # fmt: skip
        if not junit.exists():
            return {"passed": 0, "failed": 0, "errors": 1}
        cases = list(ElementTree.parse(junit).getroot().iter("testcase"))
    counts: dict[str, Any] = {"passed": 0, "failed": 0, "errors": 0, "skipped": 0}
    kinds = {"failure": "failed", "error": "errors", "skipped": "skipped"}
    reasons: Counter[str] = Counter()
    for case in cases:
        ends = [child for child in case if child.tag in kinds]
        counts[kinds[ends[0].tag] if ends else "passed"] += 1
        if ends and ends[0].tag == "skipped":
            reasons[ends[0].get("message", "")] += 1
    return {**counts, "skipped because": dict(reasons.most_common())}


def check_primitives(backend: Any) -> dict[str, float]:
    """The largest difference of each primitive from its definition, in every precision."""
    from xpmlp.testing import check_backend

    return check_backend(backend)


def check_products(backend: Any) -> dict[str, float]:
    """The largest relative difference of a product in each precision of float32."""
    from xpmlp.backends import host
    from xpmlp.rng import stream
    from xpmlp.testing import worst_place

    a, b = (host().generator(stream(i, "check")).standard_normal((512, 512)) for i in (0, 1))
    found = {}
    for precision in backend.precisions:
        on = backend.with_precision(precision)
        with on.context():
            out = on.empty((512, 512), "float32")
            on.matmul(*(on.from_host(x.astype("float32")) for x in (a, b)), out)
            found[precision] = worst_place(on.to_host(out), a @ b)[1]
    # Fewer bits of the factors show in the product: were it better, they had not been rounded.
    limits = {"ieee": (0.0, 1e-5), "tf32": (1e-5, 1e-2), "bfloat16": (1e-3, 1e-2)}
    wrong = {p: d for p, d in found.items() if not limits[p][0] <= d <= limits[p][1]}
    if wrong:
        raise ValueError(f"differences outside {limits}: {wrong}")
    return found


def train_in_each_precision(backend: Any) -> dict[str, float]:
    """The last loss of a short training in float32, which hardly depends on the precision."""
    from xpmlp import Dense, Network, fit
    from xpmlp.backends import host
    from xpmlp.optimizers import Adam
    from xpmlp.rng import stream

    rng = host().generator(stream(0, "check"))
    X = rng.standard_normal((512, 32)).astype("float32")
    y = X[:, :8].argmax(axis=1)
    found = {}
    for precision in backend.precisions:
        layers = [Dense(64, "relu"), Dense(8, "softmax")]
        network = Network(32, layers, backend=backend, dtype="float32", precision=precision, seed=0)
        losses = fit(
            network, X, y, loss="log_loss", optimizer=Adam(0.003), epochs=10, batch_size=64,
            verbose=0,
        )["loss"]  # fmt: skip
        if not losses[-1] < 0.7 * losses[0]:
            raise ValueError(f"in {precision} the loss goes from {losses[0]} to {losses[-1]}")
        found[precision] = losses[-1]
    if not max(found.values()) < 1.05 * min(found.values()):
        raise ValueError(f"the last losses differ by more than 5%: {found}")
    return found


def run_out_of_memory(backend: Any) -> str:
    """What is said of an array that no device has room for; afterwards the device goes on."""
    from xpmlp import DeviceMemoryError

    expected = MemoryError if backend.name == "numpy" else DeviceMemoryError
    with backend.context():
        try:
            backend.empty((2**47,), "float64")
        except expected as error:
            said = str(error)
        else:
            raise ValueError("an array of 2**50 bytes was made")
        if backend.read(backend.zeros((), "float32")) != 0.0:
            raise ValueError("afterwards zeros are not zero")
    return said


def check_others(backend: Any) -> dict[str, list[str]]:
    """Faults of the further GPUs of the adapter and of those that PyTorch drives."""
    from xpmlp.testing import participants
    from xpmlp.verify import verify

    found = {}
    for name, other in participants().items():
        kind, _, device = name.partition(":")
        if other is backend or device in ("", "cpu") or kind not in (backend.name, "torch"):
            continue
        report = verify({f"{backend.name}:{backend.device}": backend, name: other}, steps=20)
        found[name] = report.faults
    if any(found.values()):
        raise ValueError(str(found))
    return found


def compare(backend: Any, steps: int) -> dict[str, Any]:
    """The runs of the backend beside those of NumPy and of its own library's reference path."""
    from xpmlp import get_backend
    from xpmlp.testing import reference_of
    from xpmlp.verify import verify

    name = f"{backend.name}:{backend.device}"
    group = {
        "numpy:cpu": get_backend("cpu", "numpy"),
        name: backend,
        f"{name} by reference": reference_of(backend),
    }
    report = verify(group, steps=steps)
    print(f"\n{report}", flush=True)
    return report.to_dict()


def check_captured(backend: Any) -> dict[str, float]:
    """The largest difference of parameters after captured and after single steps, by precision."""
    from bench.gpu_contenders import Task, Xpmlp, XpmlpEager
    from xpmlp.testing import TOLERANCES

    found = {}
    for precision in backend.precisions:
        task = Task((30, 40, 20, 5), 32, 80, precision, device=backend.device)
        runs = [contender(task) for contender in (Xpmlp, XpmlpEager)]
        for run in runs:
            run.run()
        one, other = (run.backend.to_host(run.step.network.parameters) for run in runs)
        found[precision] = float(abs(one - other).max())
    # On CUDA the bits are the same; where a captured sum has an order of its own, it is rounding.
    most = 0.0 if backend.name == "cupy" else 100 * TOLERANCES["float32"]
    if not max(found.values()) <= most:
        raise ValueError(f"captured steps differ from single ones: {found}")
    return found


def count_nodes(backend: Any) -> dict[str, tuple[int, int]]:
    """Nodes of a captured step, and products among them that add a bias, by precision."""
    from bench.gpu_contenders import Task, Xpmlp

    found = {}
    for precision in backend.precisions if backend.name == "cupy" else ():
        run = Xpmlp(Task(WIDTHS, BATCH, 80, precision, device=backend.device))
        run.run()
        captured: Any = run.step._captured[BATCH]
        if captured is None:
            raise ValueError(f"steps in {precision} are not captured")
        found[precision] = captured.replay.n_nodes, captured.replay.n_biases
    return found


def time_streamed(backend: Any) -> list[dict[str, Any]]:
    """Seconds of an epoch whose samples are on the device, and on the host."""
    import numpy as np

    from xpmlp import Dense, Network, data, fit

    found = []
    share = data._RESIDENT_SHARE
    for widths, batch, n_samples in STREAMED:
        rng = np.random.default_rng(0)
        X = rng.integers(0, 256, (n_samples, widths[0]), dtype="uint8")
        y = rng.integers(0, widths[-1], n_samples)
        layers = [*(Dense(n, "relu") for n in widths[1:-1]), Dense(widths[-1], "softmax")]
        one: dict[str, Any] = {"widths": widths, "batch": batch}
        for name, most in (("resident", share), ("streamed", 0.0)):
            data._RESIDENT_SHARE = most
            try:
                for epochs in (1, EPOCHS):  # the first call compiles, captures and plans
                    network = Network(widths[0], layers, backend=backend, dtype="float32")
                    start = perf_counter()
                    fit(network, X, y, loss="log_loss", epochs=epochs, batch_size=batch, verbose=0)
                    one[name] = (perf_counter() - start) / epochs
            finally:
                data._RESIDENT_SHARE = share
        found.append(one)
    return found


def time_contenders(backend: Any) -> list[dict[str, Any]]:
    """Times of a step beside other libraries, of those that are installed and fit into memory."""
    from bench.gpu_contenders import Task
    from bench.gpu_tasks import CONTENDERS, measure

    device, cases = backend.device.partition(":")[0], []
    for widths, batch, steps, precision in TIMED:
        task = Task(widths, batch, steps, precision, device=device)
        memory = backend.memory()
        # Each process holds the rows, six matrices for each layer's, and parameters with moments.
        needed = 4 * len(CONTENDERS) * (6 * batch * sum(widths) + 8 * task.n_parameters)
        if precision in backend.precisions and (memory is None or needed < memory[0]):
            cases.append(measure(task, CONTENDERS, 3))
    return cases


def time_steps(backend: Any) -> dict[str, float]:
    """Microseconds of a training step, Adam, data on the device, beside the CPU's."""
    from xpmlp import Dense, Network, get_backend
    from xpmlp.backends import host
    from xpmlp.data import Batches
    from xpmlp.losses import LogLoss
    from xpmlp.optimizers import Adam
    from xpmlp.rng import stream
    from xpmlp.step import Dataset, TrainingStep

    rng = host().generator(stream(0, "bench"))
    X = rng.random((BATCH * 50, WIDTHS[0])).astype("float32")
    # Labels that can be learnt, and a low rate: fitting noise, rounding would grow into percents.
    y = ((X - 0.5) @ rng.standard_normal((WIDTHS[0], WIDTHS[-1])).astype("float32")).argmax(axis=1)
    found, losses = {}, {}
    for on in (get_backend("cpu", "numpy"), backend):
        hidden = [Dense(units, "relu") for units in WIDTHS[1:-1]]
        layers = [*hidden, Dense(WIDTHS[-1], "softmax")]
        network = Network(WIDTHS[0], layers, backend=on, dtype="float32")
        with on.context():
            data = Dataset(network, X, y, None, LogLoss())
            step = TrainingStep(network, Adam(1e-4), BATCH, data, 0.0)
            batches = Batches(on, len(X), BATCH)
            for number in range(2):  # the first epoch makes buffers and kernels
                start, steps = perf_counter(), 0
                while steps < (STEPS if number else 1):
                    for batch, rows in enumerate(batches.epoch(0)):
                        value = step.forward(rows, 0, batch)
                        step.backward()
                        steps += 1
                on.synchronize()
                found[f"{on.name} on {on.device}"] = (perf_counter() - start) / steps * 1e6
            losses[on.name] = on.read(value)
    if not max(losses.values()) - min(losses.values()) < 1e-2 * min(losses.values()):
        raise ValueError(f"the losses differ, so no times: {losses}")
    return found


if __name__ == "__main__":
    sys.exit(main())
