"""Describe types and values of settings in words, as `vidflow settings` prints them."""

import dataclasses
import types
import typing
from typing import Annotated, Any, Literal, Union

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", types.NoneType: "null"}
# Bounds of this size only prevent overflow and are not shown.
_FAR = 1e30


def in_words(kind: Any) -> str:
    """Return an annotated type in words: `int | None` is "a whole number or null"."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return f"{in_words(parts[0])}{_describe_bounds(parts[1:])}"
    if origin in (Union, types.UnionType):
        words = list(dict.fromkeys(map(in_words, parts)))
        return (", or " if "," in "".join(words) else " or ").join(words)
    if origin is Literal:
        return shown(parts[0]) if len(parts) == 1 else f"one of {', '.join(map(shown, parts))}"
    if origin is list or (origin is tuple and parts[-1] is Ellipsis):
        return f"a list, each entry {in_words(parts[0])}"
    if origin is tuple:
        return f"a list of {len(parts)}, each {in_words(parts[0])}"
    if origin is dict:
        return "names with values"
    if dataclasses.is_dataclass(kind):
        return f"`{{{', '.join(field.name for field in dataclasses.fields(kind))}}}`"
    return _WORDS[kind]


def shown(value: Any) -> str:
    """Return a value as written in YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    return str(value)


def _describe_bounds(metadata: tuple[Any, ...]) -> str:
    limits: dict[str, float] = {}
    for part in (limit for info in metadata for limit in info.metadata):
        limits |= {name: getattr(part, name) for name in ("ge", "gt", "le", "multiple_of") if hasattr(part, name)}
    texts = {"ge": "from", "gt": "above", "le": "to", "multiple_of": "in steps of"}
    return "".join(f" {text} {limits[name]:.7g}" for name, text in texts.items() if abs(limits.get(name, _FAR)) < _FAR)


__all__ = ["in_words", "shown"]
