"""Libraries that a bare machine lacks: what needs one is skipped there, and nothing else."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest


class Missing:
    """Stands in for all of a library that is not installed: a test that calls it is skipped."""

    in_test = False
    """Whether a test is running, or a table of cases being made."""

    def __init__(self, library: str) -> None:
        self._library = self.__name__ = library

    def __getattr__(self, name: str) -> Missing:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *arguments: Any, **options: Any) -> Missing:
        if self.in_test:
            self.skip()
        return self

    def skip(self) -> None:
        pytest.skip(f"{self._library} is not installed")


def optional(name: str) -> Any:
    """The module, or what skips the tests that use it."""
    try:
        return import_module(name)
    except ModuleNotFoundError:
        return Missing(name.partition(".")[0])
