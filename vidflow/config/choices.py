"""Explain the words that a setting accepts, from the docstring of the setting or of the class that a word selects."""

import ast
import re
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vidflow.config.docstrings import ClassText, Doc, FieldText, Sources, first_sentence, literal_words, read_sources
from vidflow.config.kinds import in_words, shown

MODELS = Path(__file__).parents[1] / "models"
"""Folder of the cores, tasks and reducers. Its files are parsed, not imported: importing torch takes seconds."""

_SCALARS = {"bool": bool, "int": int, "float": float, "str": str}
_UNIT = re.compile(r"\s*\[([^\]]+)\]$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A setting.

    Attributes:
        key: Dotted, with `ANY_NAME` for names that users give.
        kind: Accepted values, in words.
        default: As written in YAML; empty if there is none.
        unit: Unit; empty if there is none.
        meaning: One or more sentences.
        choices: The words it accepts, if any.
    """

    key: str
    kind: str
    default: str
    unit: str
    meaning: str
    choices: tuple["Choice", ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One word that a setting accepts.

    Attributes:
        word: The word.
        meaning: What it does.
        place: Where it acts, for reducers; else empty.
        source: Its paper; empty if there is none.
        settings: Its own settings.
    """

    word: str
    meaning: str
    place: str = ""
    source: str = ""
    settings: tuple[Setting, ...] = ()


@cache
def model_sources() -> Sources:
    """Parse the files of the models."""
    return read_sources(sorted(MODELS.rglob("*.py")))


def split_unit(meaning: str) -> tuple[str, str]:
    """Split a text into the part before the unit and the unit, which is in brackets at the end."""
    match = _UNIT.search(meaning)
    return (meaning[: match.start()], match[1]) if match else (meaning, "")


def explain_word(alias: str, word: str, doc: Doc) -> Iterator[Choice]:
    """Yield the meaning of a word; for a reducer, one meaning for each place where it may act.

    Args:
        alias: Name of the `Literal` that holds the word.
        word: The word.
        doc: Docstring of the setting, which may explain the word.
    """
    if word in doc.choices:
        yield Choice(word=word, meaning=doc.choices[word])
        return
    sources = model_sources()
    for name in sources.built.get((alias, word), ()):
        lineage = list(_lineage(sources, name))
        meaning = lineage[0].doc.choices.get(word) or first_sentence(lineage[0].doc.summary)
        settings, place = [], ""
        for label, text, sentence in _class_fields(sources, lineage):
            constant = text.default.value if isinstance(text.default, ast.Constant) else None
            if ast.unparse(text.annotation).startswith("ClassVar"):
                place = str(constant) if label == "place" else place
                continue
            words, kind_doc = _annotated_words(sources, text.annotation)
            if word in words:  # the reducer's name sets this field
                meaning = f"{kind_doc.choices.get(word, '')} {meaning}".strip()
                continue
            settings.append(_make_setting(sources, label, text, sentence))
        source = first_sentence(lineage[0].doc.source)
        yield Choice(word=word, meaning=meaning, place=place, source=source, settings=tuple(settings))


def _lineage(sources: Sources, name: str) -> Iterator[ClassText]:
    """Yield a class, then its base classes."""
    if name in sources.classes:
        yield sources.classes[name]
        for base in sources.classes[name].bases:
            yield from _lineage(sources, base)


def _class_fields(sources: Sources, lineage: Sequence[ClassText]) -> Iterator[tuple[str, FieldText, str]]:
    """Yield name, text and meaning of every field. A field whose type is a class is replaced by that class's fields."""
    meanings = {name: text for part in reversed(lineage) for name, text in part.doc.attributes.items()}
    for part in reversed(lineage):
        for name, text in part.fields.items():
            nested = ast.unparse(text.annotation)
            if nested in sources.classes and nested not in sources.aliases:
                yield from _class_fields(sources, list(_lineage(sources, nested)))
            else:
                yield name, text, meanings.get(name, "")


def _annotated_words(sources: Sources, annotation: ast.expr) -> tuple[tuple[str, ...], Doc]:
    """Return the words of an annotation, and the docstring that explains them."""
    for node in ast.walk(annotation):
        if isinstance(node, ast.Name) and node.id in sources.aliases:
            alias = sources.aliases[node.id]
            return literal_words(alias.value), alias.doc
    return literal_words(annotation), Doc()


def _make_setting(sources: Sources, name: str, text: FieldText, meaning: str) -> Setting:
    words, doc = _annotated_words(sources, text.annotation)
    choices = tuple(Choice(word=word, meaning=doc.choices.get(word, "")) for word in words)
    sentence, unit = split_unit(meaning)
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
            last = ... if ast.unparse(parts[-1]) == "..." else _as_type(sources, parts[-1])
            return types.GenericAlias(tuple, (*(_as_type(sources, part) for part in parts[:-1]), last))
        case ast.Name(id=name) if name in _SCALARS:
            return _SCALARS[name]
        case ast.Name(id=name):
            return _as_type(sources, sources.aliases[name].value)
    return typing.Literal[literal_words(node)]


__all__ = ["MODELS", "Choice", "Setting", "explain_word", "model_sources", "split_unit"]
