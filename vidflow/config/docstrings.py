"""Read the docstrings of classes, fields and choices from source files, without importing them (or torch)."""

import ast
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path

_ENTRY = re.compile(r"^ {4}(\w+): ", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Doc:
    """The parts of a docstring in Google style.

    Attributes:
        summary: Its first paragraph, on one line.
        attributes: Entries of its section `Attributes:`.
        choices: Entries of its section `Choices:`, which explains each word of a `Literal`.
        source: Its paragraph `Source:`, without that word; empty if there is none.
    """

    summary: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    choices: Mapping[str, str] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldText:
    """An annotated name in the body of a class, and the docstring below it.

    Attributes:
        annotation: Its annotation.
        default: Its default; None if it has none.
        doc: The docstring.
    """

    annotation: ast.expr
    default: ast.expr | None
    doc: Doc


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassText:
    """A class.

    Attributes:
        doc: Its docstring.
        bases: Names of the classes it inherits from.
        fields: Annotated names in its body, in order.
    """

    doc: Doc
    bases: tuple[str, ...]
    fields: Mapping[str, FieldText]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias:
    """A named type of a module, such as `Scope = Literal["frame", "clip"]`.

    Attributes:
        value: The type.
        doc: The docstring below it.
    """

    value: ast.Subscript
    doc: Doc


@dataclass(frozen=True, slots=True)
class Sources:
    """Classes and aliases of the files of a package.

    Attributes:
        classes: By name.
        aliases: By name.
        built: For the name of an alias and one of its words, the classes that functions choose, in order. Such a
            function has a parameter annotated with the alias, which its file defines or imports from the config or
            from its own folder. It has a `match` whose `case` names the word and the class, or a constant made by a
            call that names the class.
    """

    classes: dict[str, ClassText] = field(default_factory=dict)
    aliases: dict[str, Alias] = field(default_factory=dict)
    built: dict[tuple[str, str], list[str]] = field(default_factory=dict)


def read_sources(paths: Iterable[Path]) -> Sources:
    """Parse Python files."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}
    sources = Sources()
    for tree in trees.values():
        for statement, doc in _with_docstrings(tree.body):
            if isinstance(statement, ast.ClassDef):
                sources.classes[statement.name] = _read_class(statement)
            elif isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Subscript):
                sources.aliases[ast.unparse(statement.targets[0])] = Alias(value=statement.value, doc=doc)
    constants = {name: made for tree in trees.values() for name, made in _read_constants(tree, sources)}
    for path, tree in trees.items():
        aliases = set(_aliases_in(tree, path.parent.name))
        for function in tree.body:
            if isinstance(function, ast.FunctionDef):
                _record_choices(function, aliases, constants, sources)
    return sources


def parse_docstring(text: str | None) -> Doc:
    """Split a docstring into its parts."""
    first, *others = inspect.cleandoc(text or "").split("\n\n")
    sections = dict(paragraph.split(":", 1) for paragraph in others if ":" in paragraph)
    return Doc(
        summary=_one_line(first),
        attributes=_parse_entries(sections.get("Attributes", "")),
        choices=_parse_entries(sections.get("Choices", "")),
        source=_one_line(sections.get("Source", "")),
    )


def first_sentence(text: str) -> str:
    """Return a text up to the first full stop before a capital letter."""
    return re.split(r"(?<=\.)\s+(?=[A-Z`])", text, maxsplit=1)[0]


def literal_words(node: ast.expr) -> tuple[str, ...]:
    """Return the words of `Literal["a", "b"]`; none for any other annotation."""
    if not isinstance(node, ast.Subscript) or ast.unparse(node.value) != "Literal":
        return ()
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    return tuple(part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str))


def alias_words(sources: Sources, name: str) -> tuple[str, ...]:
    """Return the words of a named `Literal`, then those of the aliases in it, each once."""
    value = sources.aliases[name].value
    inner = [part.id for part in ast.walk(value.slice) if isinstance(part, ast.Name)]
    words = [literal_words(value), *(alias_words(sources, each) for each in inner)]
    return tuple(dict.fromkeys(word for part in words for word in part))


def _parse_entries(section: str) -> dict[str, str]:
    _, *parts = _ENTRY.split(section)
    return {name: _one_line(text) for name, text in zip(parts[::2], parts[1::2], strict=True)}


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _with_docstrings(body: list[ast.stmt]) -> Iterator[tuple[ast.stmt, Doc]]:
    """Yield statements, each with the docstring below it."""
    for statement, below in zip(body, [*body[1:], None], strict=True):
        is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        yield statement, parse_docstring(below.value.value if is_text else None)  # type: ignore[union-attr]


def _read_class(node: ast.ClassDef) -> ClassText:
    return ClassText(
        doc=parse_docstring(ast.get_docstring(node)),
        bases=tuple(ast.unparse(base) for base in node.bases),
        fields={
            ast.unparse(statement.target): FieldText(annotation=statement.annotation, default=statement.value, doc=doc)
            for statement, doc in _with_docstrings(node.body)
            if isinstance(statement, ast.AnnAssign)
        },
    )


def _read_constants(tree: ast.Module, sources: Sources) -> Iterator[tuple[str, str]]:
    """Yield the constants of a file that a call makes, each with the first class that the call is given."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            given = [word.value.id for word in node.value.keywords if isinstance(word.value, ast.Name)]
            if named := [name for name in given if name in sources.classes]:
                yield ast.unparse(node.targets[0]), named[0]


def _aliases_in(tree: ast.Module, folder: str) -> Iterator[str]:
    """Yield the names of types that a file defines, or has from the config or its own folder."""
    for node in tree.body:
        if isinstance(node, ast.Assign):
            yield ast.unparse(node.targets[0])
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[-2:-1] in (["config"], [folder]):
            yield from (name.name for name in node.names)


def _record_choices(
    function: ast.FunctionDef, aliases: Set[str], constants: Mapping[str, str], sources: Sources
) -> None:
    """Record which class each `case` of a function chooses."""
    annotations = [ast.unparse(argument.annotation) for argument in function.args.args if argument.annotation]
    alias = next((name for name in annotations if name in aliases), None)
    if alias is None:
        return
    for case in (node for node in ast.walk(function) if isinstance(node, ast.match_case)):
        named = [node.id for part in case.body for node in ast.walk(part) if isinstance(node, ast.Name)]
        named = [constants.get(name, name) for name in named]
        chosen = next((name for name in named if name in sources.classes), None)
        for pattern in ast.walk(case.pattern):
            if chosen and isinstance(pattern, ast.MatchValue) and isinstance(pattern.value, ast.Constant):
                sources.built.setdefault((alias, str(pattern.value.value)), []).append(chosen)


__all__ = [
    "Alias",
    "ClassText",
    "Doc",
    "FieldText",
    "Sources",
    "alias_words",
    "first_sentence",
    "literal_words",
    "parse_docstring",
    "read_sources",
]
