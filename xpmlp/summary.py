"""A network as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xpmlp.layers import Dense

if TYPE_CHECKING:
    from xpmlp.network import Network


def summary_table(network: Network) -> str:
    """The layers of a network with their widths, parameters and bytes."""
    size = int(network.dtype.removeprefix("float")) // 8
    rows = [("layer", "input", "output", "parameters", "bytes")]
    width = network.n_features
    for layer in network.layers:
        before, count = width, 0
        if isinstance(layer, Dense):
            width, count = layer.units, layer.n_parameters(width)
        rows.append((str(layer), f"{before}", f"{width}", f"{count:,}", f"{count * size:,}"))
    total = network.n_parameters
    rows.append(("total", "", "", f"{total:,}", f"{total * size:,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    rule = "-" * len(lines[0])
    head = (
        f"Network of {network.dtype} on {network.device} ({network.backend.name}), "
        f"seed {network.seed}"
    )
    return "\n".join([head, rule, lines[0], rule, *lines[1:-1], rule, lines[-1]])
