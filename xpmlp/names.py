"""Names to objects and back: one convention for activations, losses, optimizers and the rest.

Each of these is a frozen dataclass with a class attribute ``name``. Wherever one is expected, its
name stands for the object with default arguments, and ``{"name": ..., **arguments}`` describes
any of them in a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, cast

from xpmlp.errors import unknown_name

T = TypeVar("T")


def resolve(argument: str, value: Any, table: Mapping[str, type[T]], base: Any) -> T:
    """The object that `value` names, or `value` itself if it is one.

    Raises
    ------
    ValueError
        If the name is unknown; the message lists the known ones, the nearest first.
    TypeError
        If `value` is neither a name nor an instance of `base`.
    """
    if isinstance(value, base):
        return cast(T, value)
    if isinstance(value, str):
        if value.lower() not in table:
            raise unknown_name(argument, value, table)
        return table[value.lower()]()
    raise TypeError(f"{argument} must be a name or an instance of {base.__name__}, got {value!r}")


def build(argument: str, spec: Mapping[str, Any], table: Mapping[str, type[T]]) -> T:
    """The object with the name and arguments of `spec`; the inverse of :func:`describe`.

    Raises
    ------
    ValueError
        If the name or one of the arguments is unknown.
    """
    arguments = dict(spec)
    name = str(arguments.pop("name", "")).lower()
    if name not in table:
        raise unknown_name(argument, name, table)
    cls = table[name]
    assert is_dataclass(cls)
    known = [field.name for field in fields(cls) if field.init]
    for key in arguments:
        if key not in known:
            raise unknown_name(f"{argument} {name}: option", key, known or ["(none)"])
    return cls(**arguments)


def describe(value: Any) -> dict[str, Any]:
    """Name and arguments of `value` as plain data."""
    arguments = {field.name: getattr(value, field.name) for field in fields(value)}
    return {"name": value.name, **arguments}


def parse(argument: str, text: str, table: Mapping[str, type[T]], **defaults: Any) -> T:
    """The object written as ``name`` or ``name:key=value,key=value``.

    Numbers, ``true``, ``false`` and ``none`` are what they say. `defaults` are arguments that
    the text may override.

    Raises
    ------
    ValueError
        If the text is not of this form, or the name or an argument is unknown.
    """
    name, _, rest = text.strip().partition(":")
    given: dict[str, Any] = {}
    for pair in rest.split(",") if rest else []:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"{argument}={text!r}: expected name:key=value,..., got {pair!r}")
        given[key.strip()] = _value(value.strip())
    return build(argument, {"name": name, **defaults, **given}, table)


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
