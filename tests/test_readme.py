"""The README's programs run, and its table lists what there is."""

import re
from pathlib import Path

import pytest

from bench.readme import PAGES, rewritten
from xpmlp.activations import ACTIVATIONS
from xpmlp.losses import LOSSES
from xpmlp.optimizers import OPTIMIZERS
from xpmlp.schedules import SCHEDULES

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


@pytest.mark.parametrize("program", PROGRAMS, ids=[f"program{i}" for i in range(len(PROGRAMS))])
def test_programs_run(program, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "README.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out


def test_there_are_programs():
    assert len(PROGRAMS) >= 2


def test_the_programs_of_contributing_run_and_their_derivatives_are_right():
    scope = {}
    for program in re.findall(r"```python\n(.*?)```", CONTRIBUTING, re.DOTALL):
        exec(compile(program, "CONTRIBUTING.md", "exec"), scope)
    network, X, y = scope["network"], [[0.0, 1.0, 2.0, 3.0]], [0.5]
    loss = scope["LogCosh"]()
    gradient = network.loss_and_grad(X, y, loss)[1].flat
    for index in range(network.n_parameters):
        values = []
        for step in (1e-6, -2e-6):
            network.parameters[index] += step
            values.append(network.loss_and_grad(X, y, loss)[0])
        network.parameters[index] += 1e-6
        assert float(gradient[index]) == pytest.approx((values[0] - values[1]) / 2e-6, abs=1e-8)


def row(name):
    return re.search(rf"^\| {name}[^|]*\| (.*) \|$", TEXT, re.MULTILINE).group(1)


def test_the_table_lists_what_there_is():
    assert set(row("activations").split(", ")) == {cls.name for cls in ACTIVATIONS.values()}
    assert set(row("schedules").split(", ")) == set(SCHEDULES)
    losses, optimizers = row("losses"), row("optimizers").lower()
    assert all(name in losses for name in LOSSES)
    assert all(re.search(rf"\b{name}\b", optimizers) for name in OPTIMIZERS)


@pytest.mark.parametrize("page", PAGES)
def test_its_figures_are_those_of_the_measurements(page):
    text = (ROOT / page).read_text()
    assert rewritten(text, PAGES[page]()) == text


@pytest.mark.parametrize(
    "page", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda page: page.name
)
def test_the_files_it_names_exist(page):
    for target in re.findall(r"\]\((?!http)([^)]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_tests_that_promises_name_exist():
    text = (ROOT / "docs" / "reliability.md").read_text()
    named = re.findall(r"`((?:test_|fuzz)\w*\.py)`", text)
    assert len(named) > 10
    for name in named:
        assert (ROOT / "tests" / name).exists(), name


def test_the_commands_it_opens_with_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make ([\w-]+)", TEXT):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
