"""Check a reducer's setting against its annotated type, and describe that type in words."""

import math
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin


def fits(value: object, kind: Any) -> bool:
    """Say whether a value is of an annotated type; a bool is not a number, and numbers must be finite.

    Args:
        value: The given value; sequences are tuples.
        kind: `bool`, `int`, `float`, None, a `Literal`, a tuple of these, or a union.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):  # of a Literal and None, or of classes
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        inner = (parts[0],) * len(value) if parts[-1] is Ellipsis else parts
        return len(value) == len(inner) and all(map(fits, value, inner))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def in_words(kind: Any) -> str:
    """Describe an annotated type for a message."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):  # of a Literal and None, or of classes
        return " or ".join(map(in_words, parts))
    if origin is Literal:
        return f"one of {', '.join(parts)}"
    if origin is tuple:
        if parts[-1] is Ellipsis:
            return f"a list whose every entry is {in_words(parts[0])}"
        return f"a list of {len(parts)} entries, each {in_words(parts[0])}"
    words: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number", NoneType: "null"}
    return words[kind]


__all__ = ["fits", "in_words"]
