"""Pictures of measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_COLOURS = {
    "xpmlp": "#1f5fa8",
    "xpmlp without Numba": "#7fa8d6",
    "GEMMs alone": "#555555",
    "GEMMs by PyTorch": "#888888",
    "GEMMs by JAX": "#888888",
}
_OTHERS = "#c9c9c9"


def steps_plot(record: dict[str, Any], path: Path) -> None:
    """One panel a case: how many times as long as its matrix products each contender takes."""
    plt = _pyplot()
    cases = record["cases"]
    columns = min(3, len(cases))
    rows = -(-len(cases) // columns)
    height = 0.8 + 0.28 * max(len(case["contenders"]) for case in cases)
    figure, axes = plt.subplots(
        rows, columns, squeeze=False, figsize=(4.4 * columns, height * rows), layout="constrained"
    )
    for panel in axes.flat[len(cases) :]:
        panel.remove()
    for panel, case in zip(axes.flat, cases, strict=False):
        names = list(case["contenders"])
        ratios = [found["to_products"] for found in case["contenders"].values()]
        panel.barh(names, ratios, color=[_COLOURS.get(name, _OTHERS) for name in names])
        for place, found in enumerate(case["contenders"].values()):
            text = f" {found['to_products']:.1f} · {found['microseconds_a_step']:,.0f} µs"
            panel.text(max(1, found["to_products"]), place, text, va="center", fontsize=8)
        panel.axvline(1, color="black", linewidth=0.8)
        panel.set_xlim(0, 1.5 * max(ratios))
        panel.invert_yaxis()
        panel.set_title(f"{case['shape']}, batch {case['batch']}", fontsize=10)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in axes[:, 1:].flat:
        panel.tick_params(labelleft=False)
    figure.supxlabel(
        f"time of a training step, matrix products alone = 1 ({record['configuration']['dtype']})",
        fontsize=9,
    )
    _save(figure, path)


def scaling_plot(record: dict[str, Any], path: Path) -> None:
    """One panel a quantity: seconds against it, and the line that fits them."""
    plt = _pyplot()
    series = record["series"]
    figure, axes = plt.subplots(
        1, len(series), squeeze=False, figsize=(4 * len(series), 3.2), layout="constrained"
    )
    for panel, (name, found) in zip(axes.flat, series.items(), strict=True):
        sizes, seconds = found["sizes"], found["seconds"]
        fitted = [found["factor"] * size ** found["exponent"] for size in sizes]
        panel.loglog(sizes, fitted, color=_OTHERS, linewidth=2)
        panel.loglog(sizes, seconds, "o", color=_COLOURS["xpmlp"])
        panel.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=8)
        panel.set_xticks([], minor=True)
        for size, each in zip(sizes, seconds, strict=True):
            panel.annotate(f" {each:.2g} s", (size, each), fontsize=8, va="top")
        panel.margins(0.15)
        panel.set_title(f"{name}: exponent {found['exponent']:.2f}", fontsize=10)
        panel.set_xlabel(found["quantity"], fontsize=9)
        panel.set_ylabel("s an epoch", fontsize=9)
        panel.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the version of matplotlib in it.
    figure.savefig(path, dpi=110, metadata={"Software": None})
