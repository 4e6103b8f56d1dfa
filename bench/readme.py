"""What the pages say of measurements, made from the committed ones."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from statistics import median
from typing import Any

import click

from bench.contenders import ScikitLearn, Xpmlp
from bench.environment import packages
from bench.faults import report as faults_report
from bench.report import missing, table

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
_BETWEEN = re.compile(r"(<!-- bench:begin[^>]*-->\n).*?(<!-- bench:end -->)", re.DOTALL)


@click.command()
def readme() -> None:
    """Rewrite what README.md and docs/ say of the JSON files in bench/results."""
    for page, section in PAGES.items():
        path = ROOT / page
        text = rewritten(path.read_text(encoding="utf-8"), section())
        path.write_text(text, encoding="utf-8")


def rewritten(text: str, section: str) -> str:
    """A page with a section between its marks."""
    if not _BETWEEN.search(text):
        raise ValueError("the page has no <!-- bench:begin --> and <!-- bench:end -->")
    return _BETWEEN.sub(lambda found: f"{found[1]}{section}\n{found[2]}", text)


def speed() -> str:
    """The README's section, in Markdown."""
    cpu = _read("cpu-float32")
    parts = [
        _method(cpu),
        _steps(cpu),
        "![The same as bars, relative to the matrix products alone](bench/results/cpu-float32.png)",
        "\n".join(
            _wrapped("* " + sentence, "  ")
            for sentence in (
                _predict(_read("predict")),
                _memory(_read("memory")),
                _imports(_read("import")),
                _scaling(_read("scaling")),
            )
        ),
    ]
    return "\n\n".join(parts)


def reliability() -> str:
    """The section of docs/reliability.md, in Markdown."""
    return faults_report(_read("faults"))


PAGES = {"README.md": speed, "docs/reliability.md": reliability}


def _method(record: dict[str, Any]) -> str:
    facts, configuration = record["environment"], record["configuration"]
    spread = max(max(case["differences_of_losses"].values()) for case in record["cases"])
    reasons = " ".join(missing(record))
    timed = [one for case in record["cases"] for one in case["contenders"].values()]
    noise = median(
        (max(one["seconds"]) - min(one["seconds"])) / median(one["seconds"]) for one in timed
    )
    return _wrapped(
        f"Microseconds of a training step on one machine ({facts['cpu']}, {facts['cores']} cores; "
        f"{packages(facts)}): {configuration['dtype']}, ReLU, softmax, log loss, Adam, default "
        "threads. All start from the same parameters; before the timing their losses, in the order "
        f"of the data, differed by at most {spread:.1%}: rounding, which training magnifies. "
        f"Medians of {configuration['rounds']} interleaved rounds, whose slowest and fastest were "
        f"typically {noise:.0%} apart: smaller differences say nothing. Elsewhere, and on a busy "
        "machine, expect other times; ratios carry further. GEMMs are the bare matrix products of "
        f"a step, for each of which NumPy and PyTorch are called, and JAX once an epoch. {reasons}"
    )


def _steps(record: dict[str, Any]) -> str:
    cases = record["cases"]
    rows = [
        [name, *(f"{case['contenders'][name]['microseconds_a_step']:,.0f}" for case in cases)]
        for name in cases[0]["contenders"]
    ]
    return table(["", *(f"{case['shape']}, batch {case['batch']}" for case in cases)], rows)


def _predict(record: dict[str, Any]) -> str:
    found = record["contenders"]
    times = _listed(f"{name} {each['median']:.2f} s" for name, each in found.items())
    memory = _listed(
        f"{name} {each['peak_megabytes']:.0f} MB"
        for name, each in found.items()
        if each["peak_megabytes"] is not None
    )
    return (
        f"Predicting {record['rows']:,} rows with {record['shape']}: {times}; memory for it: "
        f"{memory}."
    )


def _memory(record: dict[str, Any]) -> str:
    shape = record["results"][0]["shape"]
    found = [result for result in record["results"] if result["shape"] == shape]

    def peaks(name: str) -> str:
        return _listed(f"{each['peak_megabytes'][name]:.0f}" for each in found)

    inputs = _listed(each["input"] for each in found)
    data = _listed(f"{each['data_megabytes']:.0f}" for each in found)
    return (
        f"Memory of `fit` beyond X, {shape} in float32, {found[0]['rows']:,} rows of {inputs} "
        f"({data} MB): {peaks(Xpmlp.name)} MB, as X is never copied; "
        f"scikit-learn {peaks(ScikitLearn.name)} MB."
    )


def _imports(record: dict[str, Any]) -> str:
    first = record["first_fits"][0]
    cold, warm, without = first["seconds"].values()
    return (
        f"`import xpmlp` takes {record['imports']['xpmlp, beyond NumPy']:.2f} s beyond NumPy. "
        f"The first `fit` of a process, here {first['epochs']} epochs of {first['rows']:,} rows "
        f"with {first['shape']}, takes {cold['first']:.1f} s with Numba, which compiles, "
        f"{warm['first']:.1f} s where an earlier process has done that, and every later one "
        f"{warm['second']:.1f} s; without Numba {without['second']:.1f} s."
    )


def _scaling(record: dict[str, Any]) -> str:
    grown = _listed(
        f"{name} (to {found['sizes'][-1]:,}) to the power of {found['exponent']:.2f}"
        for name, found in record["series"].items()
    )
    return f"Time of an epoch grows with {grown}."


def _listed(parts: Any) -> str:
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else str(last)


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, 105, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _read(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return record
