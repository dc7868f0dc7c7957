"""Describe every setting of an experiment from the code: kind, default, unit, meaning and choices.

Settings come from `schema`. The meanings of their choices come from `schema` or, through `choices`, from the models.
"""

import ast
import dataclasses
import typing
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vidflow.config import schema
from vidflow.config.choices import Setting, explain_word, model_sources, split_unit
from vidflow.config.docstrings import FieldText, Sources, alias_words, read_sources
from vidflow.config.kinds import in_words, shown
from vidflow.config.names import nearest_hint
from vidflow.config.schema import Config
from vidflow.errors import ConfigError

ANY_NAME = "NAME"
"""Placeholder in keys for a name that the user chooses, such as that of a feature set."""

# The only key whose choices are not in its annotation, because the reducers themselves check the name.
_REDUCER_KEY, _REDUCER_ALIAS = f"features.{ANY_NAME}.reducer.name", "ReducerName"


@dataclass(frozen=True, slots=True)
class Section:
    """One section of the configuration.

    Attributes:
        key: Dotted; empty for the top.
        meaning: One sentence.
        settings: Its own settings, without those of its sub-sections.
    """

    key: str
    meaning: str
    settings: tuple[Setting, ...]


@cache
def describe_sections() -> tuple[Section, ...]:
    """Return all settings, section by section, in the order of the schema."""
    return tuple(_read_sections(Config, ""))


def find_settings(key: str) -> list[Section]:
    """Return what a key names: one setting, or all settings of a section.

    Args:
        key: Dotted. Any name is accepted for a feature set or an axis.

    Raises:
        ConfigError: If there is no such setting; the message has the nearest.
    """
    found = []
    for section in describe_sections():
        is_inside = _is_within(section.key, key)
        settings = tuple(s for s in section.settings if is_inside or _matches(s.key, key))
        if settings:
            found.append(dataclasses.replace(section, settings=settings))
    if not found:
        raise ConfigError(f"{key}: no such setting; {_suggest_nearest(key)}")
    return found


def _suggest_nearest(key: str) -> str:
    keys = [setting.key for section in describe_sections() for setting in section.settings]
    if named_alike := [other for other in keys if other.endswith(f".{key.split('.')[-1]}")]:
        return f"did you mean {' or '.join(f'`{other}`' for other in named_alike)}?"
    parts = key.split(".")
    for length in range(len(parts) - 1, -1, -1):
        parent = ".".join(parts[:length])
        below = [other for other in keys if not parent or _is_within(other, parent)]
        if below:
            # The names directly below the part that is correct.
            return nearest_hint(key, list(dict.fromkeys(".".join(o.split(".")[: length + 1]) for o in below)))
    raise AssertionError("the empty key has every setting below it")


def _is_within(key: str, beginning: str) -> bool:
    """Return whether a key of the schema equals the user's key or is below it."""
    parts = key.split(".")
    return _matches(".".join(parts[: beginning.count(".") + 1]), beginning)


def _matches(key: str, given: str) -> bool:
    ours, theirs = key.split("."), given.split(".")
    return len(ours) == len(theirs) and all(a in (b, ANY_NAME) for a, b in zip(ours, theirs, strict=True))


@cache
def _schema_sources() -> Sources:
    return read_sources([Path(schema.__file__)])


def _read_sections(section: Any, key: str) -> Iterator[Section]:
    sources = _schema_sources()
    text, fields = sources.classes[section.__name__], _fields_of(section.__name__, sources)
    hints = typing.get_type_hints(section, include_extras=True)
    prefix = f"{key}." if key else ""
    settings: list[Setting] = []
    inner: list[tuple[Any, str]] = []
    for field in dataclasses.fields(section):
        hint, place = hints[field.name], f"{prefix}{field.name}"
        if is_dataclass(hint):
            inner.append((hint, place))
            continue
        # The types of a dictionary's values.
        values = typing.get_args(hint)[1:] if typing.get_origin(hint) is dict else ()
        if not any(map(is_dataclass, values)):
            settings.append(_make_setting(place, hint, _read_default(field), fields[field.name]))
        named = [part for value in values for part in (value, *typing.get_args(value))]
        inner += [(part, f"{place}.{ANY_NAME}") for part in named if is_dataclass(part)]
    yield Section(key, text.doc.summary, tuple(settings))
    for part, place in inner:
        yield from _read_sections(part, place)


def _fields_of(name: str, sources: Sources) -> dict[str, FieldText]:
    """Return the fields of a class, with those that it inherits."""
    text = sources.classes[name]
    inherited = (_fields_of(base, sources) for base in text.bases if base in sources.classes)
    return {**{field: found for each in inherited for field, found in each.items()}, **text.fields}


def _read_default(field: "dataclasses.Field[Any]") -> str:
    if field.default_factory is not MISSING:
        return shown(field.default_factory())
    return "" if field.default is MISSING else shown(field.default)


def _make_setting(key: str, hint: Any, default: str, text: FieldText) -> Setting:
    meaning, unit = split_unit(text.doc.summary)
    alias = ast.unparse(text.annotation)
    if key == _REDUCER_KEY:
        alias = _REDUCER_ALIAS
        hint = typing.Literal[alias_words(model_sources(), alias)]
    words = [word for part in (hint, *typing.get_args(hint)) for word in _literal_values(part)]
    choices = tuple(choice for word in words for choice in explain_word(alias, word, text.doc))
    return Setting(key=key, kind=in_words(hint), default=default, unit=unit, meaning=meaning, choices=choices)


def _literal_values(hint: Any) -> list[str]:
    return list(typing.get_args(hint)) if typing.get_origin(hint) is typing.Literal else []


__all__ = ["ANY_NAME", "Section", "describe_sections", "find_settings"]
