"""What source files say of their classes, fields and choices. They are read, not imported, so torch is not either."""

import ast
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path

_ENTRY = re.compile(r"^ {4}(\w+): ", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Doc:
    """A docstring in Google style, taken apart.

    Attributes:
        summary: Its first paragraph, on one line.
        attributes: Entries of its section `Attributes:`.
        choices: Entries of its section `Choices:`, which says what each word of a `Literal` means.
        source: Its paragraph `Source:`, without that word; empty where there is none.
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
        default: Its default; None where it has none.
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
    """A type that a module gives a name, such as `Scope = Literal["frame", "clip"]`.

    Attributes:
        value: The type.
        doc: The docstring below it.
    """

    value: ast.Subscript
    doc: Doc


@dataclass(frozen=True, slots=True)
class Sources:
    """What the files of a package say.

    Attributes:
        classes: By name.
        aliases: By name.
        built: By name of an alias and one of its words: the classes that functions choose for it, in their order. Such
            a function is in the folder of the alias, has a parameter annotated with it, and a `match` whose `case`
            names the word and the class.
    """

    classes: dict[str, ClassText] = field(default_factory=dict)
    aliases: dict[str, Alias] = field(default_factory=dict)
    built: dict[tuple[str, str], list[str]] = field(default_factory=dict)


def read_sources(paths: Iterable[Path]) -> Sources:
    """Read Python files."""
    trees = [(path.parent, ast.parse(path.read_text(encoding="utf-8"))) for path in paths]
    sources = Sources()
    named: dict[Path, set[str]] = {}
    for folder, tree in trees:
        for statement, doc in _with_docstrings(tree.body):
            if isinstance(statement, ast.ClassDef):
                sources.classes[statement.name] = _read_class(statement)
            elif isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Subscript):
                name = ast.unparse(statement.targets[0])
                sources.aliases[name] = Alias(value=statement.value, doc=doc)
                named.setdefault(folder, set()).add(name)
    for folder, tree in trees:
        for function in tree.body:
            if isinstance(function, ast.FunctionDef):
                _read_choice(function, named.get(folder, set()), sources)
    return sources


def parse_docstring(text: str | None) -> Doc:
    """Take a docstring apart."""
    first, *others = inspect.cleandoc(text or "").split("\n\n")
    sections = dict(paragraph.split(":", 1) for paragraph in others if ":" in paragraph)
    return Doc(
        summary=_one_line(first),
        attributes=_entries(sections.get("Attributes", "")),
        choices=_entries(sections.get("Choices", "")),
        source=_one_line(sections.get("Source", "")),
    )


def first_sentence(text: str) -> str:
    """Return a text up to the first full stop before a capital letter."""
    return re.split(r"(?<=\.)\s+(?=[A-Z`])", text, maxsplit=1)[0]


def literal_words(node: ast.expr) -> tuple[str, ...]:
    """Return the words of `Literal["a", "b"]`, none where it is something else."""
    if not isinstance(node, ast.Subscript) or ast.unparse(node.value) != "Literal":
        return ()
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    return tuple(part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str))


def _entries(section: str) -> dict[str, str]:
    _, *parts = _ENTRY.split(section)
    return {name: _one_line(text) for name, text in zip(parts[::2], parts[1::2], strict=True)}


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _with_docstrings(body: list[ast.stmt]) -> Iterator[tuple[ast.stmt, Doc]]:
    """Yield statements, each with the string that stands below it."""
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


def _read_choice(function: ast.FunctionDef, aliases: Set[str], sources: Sources) -> None:
    """Note which classes the cases of a function name."""
    annotations = [ast.unparse(argument.annotation) for argument in function.args.args if argument.annotation]
    alias = next((name for name in annotations if name in aliases), None)
    if alias is None:
        return
    for case in (node for node in ast.walk(function) if isinstance(node, ast.match_case)):
        named = [node.id for part in case.body for node in ast.walk(part) if isinstance(node, ast.Name)]
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
    "first_sentence",
    "literal_words",
    "parse_docstring",
    "read_sources",
]
