"""``python -m bench --help`` lists the programs; from the root of a checkout."""

import click

from bench.accuracy import accuracy
from bench.cpu import cpu
from bench.faults import faults
from bench.gpu import gpu
from bench.imports import imports
from bench.memory import memory
from bench.parity import parity
from bench.predict import predict
from bench.readme import readme
from bench.scaling import scaling


@click.group()
def main() -> None:
    """Benchmarks: each asserts quality first, then prints a table and writes JSON."""


for command in (cpu, gpu, predict, memory, scaling, imports, readme, accuracy, parity, faults):
    main.add_command(command)

if __name__ == "__main__":
    main(prog_name="python -m bench")
