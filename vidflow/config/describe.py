"""Every setting of an experiment with its kind, default, unit, meaning and choices, as the code itself says them.

Settings come from `schema`; what the names of cores, tasks and reducers mean comes from the docstrings of the classes
that the models choose by these names. Those files are read, not imported: that takes a tenth of a second, torch seconds.
"""

import ast
import dataclasses
import re
import typing
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vidflow.config import schema
from vidflow.config.docstrings import ClassText, Doc, FieldText, Sources, first_sentence, literal_words, read_sources
from vidflow.config.kinds import in_words, shown
from vidflow.config.names import nearest_hint
from vidflow.config.schema import Config
from vidflow.errors import ConfigError

ANY_NAME = "NAME"
"""Stands in keys for a name that the user gives, such as that of a feature set."""

_MODELS = Path(__file__).parents[1] / "models"
# The one key whose choices are not in its annotation: a wrong name is answered by the reducers themselves.
_REDUCER = (f"features.{ANY_NAME}.reducer.name", "ReducerName")
_SCALARS = {"bool": bool, "int": int, "float": float, "str": str}
_UNIT = re.compile(r"\s*\[([^\]]+)\]$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A setting.

    Attributes:
        key: Dotted, with `ANY_NAME` for names that users give.
        kind: What it may be, in words.
        default: As YAML has it; empty where there is none.
        unit: Unit; empty where it has none.
        meaning: One or more sentences.
        choices: The words it may be, if any.
    """

    key: str
    kind: str
    default: str
    unit: str
    meaning: str
    choices: tuple["Choice", ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One word that a setting may be.

    Attributes:
        word: The word.
        meaning: What it does.
        place: Where it acts, for reducers that offer several places; else empty.
        source: The paper behind it; empty where there is none.
        settings: Settings of its own.
    """

    word: str
    meaning: str
    place: str = ""
    source: str = ""
    settings: tuple[Setting, ...] = ()


@dataclass(frozen=True, slots=True)
class Section:
    """Settings that stand together.

    Attributes:
        key: Dotted; empty for the top.
        meaning: One sentence.
        settings: Its own settings, without those of sections in it.
    """

    key: str
    meaning: str
    settings: tuple[Setting, ...]


@cache
def describe_sections() -> tuple[Section, ...]:
    """Return all settings, section by section, in the order of the schema."""
    return tuple(_sections(Config, ""))


def find_settings(key: str) -> list[Section]:
    """Return what a key names: one setting, or all settings of a section.

    Args:
        key: Dotted; the names of feature sets and axes may be any.

    Raises:
        ConfigError: There is no such setting; the message has the nearest.
    """
    found = []
    for section in describe_sections():
        is_inside = _starts(section.key, key)
        settings = tuple(s for s in section.settings if is_inside or _matches(s.key, key))
        if settings:
            found.append(dataclasses.replace(section, settings=settings))
    if not found:
        raise ConfigError(f"{key}: no such setting; {_nearest(key)}")
    return found


def _nearest(key: str) -> str:
    keys = [setting.key for section in describe_sections() for setting in section.settings]
    if named_alike := [other for other in keys if other.endswith(f".{key.split('.')[-1]}")]:
        return f"did you mean {' or '.join(f'`{other}`' for other in named_alike)}?"
    parts = key.split(".")
    for length in range(len(parts) - 1, -1, -1):
        parent = ".".join(parts[:length])
        below = [other for other in keys if not parent or _starts(other, parent)]
        if below:
            # The names just below the part that is right.
            return nearest_hint(key, list(dict.fromkeys(".".join(o.split(".")[: length + 1]) for o in below)))
    raise AssertionError("the empty key has every setting below it")


def _starts(key: str, beginning: str) -> bool:
    """Say whether a key of ours is or lies below a user's key."""
    parts = key.split(".")
    return _matches(".".join(parts[: beginning.count(".") + 1]), beginning)


def _matches(key: str, given: str) -> bool:
    ours, theirs = key.split("."), given.split(".")
    return len(ours) == len(theirs) and all(a in (b, ANY_NAME) for a, b in zip(ours, theirs, strict=True))


@cache
def _schema_sources() -> Sources:
    return read_sources([Path(schema.__file__)])


@cache
def _model_sources() -> Sources:
    return read_sources(sorted(_MODELS.rglob("*.py")))


def _sections(section: type, key: str) -> Iterator[Section]:
    text = _schema_sources().classes[section.__name__]
    hints = typing.get_type_hints(section, include_extras=True)
    prefix = f"{key}." if key else ""
    settings, inner = [], []
    for field in dataclasses.fields(section):
        hint, place = hints[field.name], f"{prefix}{field.name}"
        if dataclasses.is_dataclass(hint):
            inner.append((hint, place))
            continue
        # Of a dictionary, what its values may be.
        values = typing.get_args(hint)[1:] if typing.get_origin(hint) is dict else ()
        if not any(map(dataclasses.is_dataclass, values)):
            settings.append(_setting(place, hint, _default(field), text.fields[field.name]))
        named = [part for value in values for part in (value, *typing.get_args(value))]
        inner += [(part, f"{place}.{ANY_NAME}") for part in named if dataclasses.is_dataclass(part)]
    yield Section(key, text.doc.summary, tuple(settings))
    for part, place in inner:
        yield from _sections(part, place)


def _default(field: "dataclasses.Field[Any]") -> str:
    if field.default_factory is not MISSING:
        return shown(field.default_factory())
    return "" if field.default is MISSING else shown(field.default)


def _setting(key: str, hint: Any, default: str, text: FieldText) -> Setting:
    meaning, unit = _split_unit(text.doc.summary)
    alias = dict([_REDUCER]).get(key, ast.unparse(text.annotation))
    words = [word for part in (hint, *typing.get_args(hint)) for word in _words(part)]
    if key == _REDUCER[0]:
        words = list(literal_words(_model_sources().aliases[alias].value))
        hint = typing.Literal[tuple(words)]
    choices = tuple(choice for word in words for choice in _choices(alias, word, text.doc))
    return Setting(key=key, kind=in_words(hint), default=default, unit=unit, meaning=meaning, choices=choices)


def _words(hint: Any) -> list[str]:
    return list(typing.get_args(hint)) if typing.get_origin(hint) is typing.Literal else []


def _split_unit(meaning: str) -> tuple[str, str]:
    match = _UNIT.search(meaning)
    return (meaning[: match.start()], match[1]) if match else (meaning, "")


def _choices(alias: str, word: str, doc: Doc) -> Iterator[Choice]:
    """Yield what a word means: as the setting itself says it, or as the classes do that stand for it."""
    if word in doc.choices:
        yield Choice(word=word, meaning=doc.choices[word])
        return
    sources = _model_sources()
    for name in sources.built.get((alias, word), ()):
        lineage = list(_lineage(sources, name))
        meaning = lineage[0].doc.choices.get(word) or first_sentence(lineage[0].doc.summary)
        settings, place = [], ""
        for label, text, sentence in _class_fields(sources, lineage):
            constant = text.default.value if isinstance(text.default, ast.Constant) else None
            if ast.unparse(text.annotation).startswith("ClassVar"):
                place = str(constant) if label in ("stage", "place") else place
                continue
            words, kind_doc = _annotated_words(sources, text.annotation)
            if word in words:  # the name itself sets this field
                meaning = f"{kind_doc.choices.get(word, '')} {meaning}".strip()
                continue
            settings.append(_own_setting(sources, label, text, sentence))
        source = first_sentence(lineage[0].doc.source)
        yield Choice(word=word, meaning=meaning, place=place, source=source, settings=tuple(settings))


def _lineage(sources: Sources, name: str) -> Iterator[ClassText]:
    """Yield a class, then those it inherits from."""
    if name in sources.classes:
        yield sources.classes[name]
        for base in sources.classes[name].bases:
            yield from _lineage(sources, base)


def _class_fields(sources: Sources, lineage: Sequence[ClassText]) -> Iterator[tuple[str, FieldText, str]]:
    """Yield name, text and meaning of every field; a field that is a class itself stands for that class's fields."""
    meanings = {name: text for part in reversed(lineage) for name, text in part.doc.attributes.items()}
    for part in lineage:
        for name, text in part.fields.items():
            nested = ast.unparse(text.annotation)
            if nested in sources.classes and nested not in sources.aliases:
                yield from _class_fields(sources, list(_lineage(sources, nested)))
            else:
                yield name, text, meanings.get(name, "")


def _annotated_words(sources: Sources, annotation: ast.expr) -> tuple[tuple[str, ...], Doc]:
    """Return the words of an annotation, and what says their meaning."""
    for node in ast.walk(annotation):
        if isinstance(node, ast.Name) and node.id in sources.aliases:
            alias = sources.aliases[node.id]
            return literal_words(alias.value), alias.doc
    return literal_words(annotation), Doc()


def _own_setting(sources: Sources, name: str, text: FieldText, meaning: str) -> Setting:
    words, doc = _annotated_words(sources, text.annotation)
    choices = tuple(Choice(word=word, meaning=doc.choices.get(word, "")) for word in words)
    sentence, unit = _split_unit(meaning)
    default = "" if text.default is None else shown(ast.literal_eval(text.default))
    kind = in_words(_as_type(sources, text.annotation))
    return Setting(key=name, kind=kind, default=default, unit=unit, meaning=sentence, choices=choices)


def _as_type(sources: Sources, node: ast.expr) -> Any:
    """Return the type that an annotation names."""
    match node:
        case ast.Constant(value=None):
            return None.__class__
        case ast.BinOp(left=left, right=right):
            return _as_type(sources, left) | _as_type(sources, right)
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=parts)):
            first = _as_type(sources, parts[0])
            return tuple[first, ...] if ast.unparse(parts[-1]) == "..." else tuple[(first,) * len(parts)]
        case ast.Name(id=name) if name in _SCALARS:
            return _SCALARS[name]
        case ast.Name(id=name):
            return _as_type(sources, sources.aliases[name].value)
    return typing.Literal[literal_words(node)]


__all__ = ["ANY_NAME", "Choice", "Section", "Setting", "describe_sections", "find_settings"]
