"""``python -m bench cpu``, ``accuracy`` and ``parity``, from the root of a checkout."""

import click

from bench.accuracy import accuracy
from bench.cpu import cpu
from bench.parity import parity


@click.group()
def main() -> None:
    """Benchmarks: each asserts quality first, then prints a table and writes JSON."""


main.add_command(cpu)
main.add_command(accuracy)
main.add_command(parity)

if __name__ == "__main__":
    main(prog_name="python -m bench")
