"""Names of classes that a list gives as numbers, from a file of names beside it."""

from collections.abc import Iterable
from pathlib import Path

from vidflow.errors import ConfigError

PATTERNS = ("classes.txt", "label_map*.txt")
"""Names of files with the name of one class per line, in the order of the numbers from 0."""


def read_class_names(folder: Path, labels: Iterable[str]) -> tuple[dict[str, str], str]:
    """Return number -> name for labels that are numbers, and a sentence about them; both empty if they are not.

    Raises:
        ConfigError: If there are several files of names, or one does not name every class.
    """
    found = set(labels) - {""}
    if not found or not all(label.isdecimal() for label in found):
        return {}, ""
    files = sorted(file for pattern in PATTERNS for file in folder.glob(pattern) if file.is_file())
    if not files:
        return {}, f"Classes are numbers; there is no {' or '.join(PATTERNS)} beside that names them."
    if len(files) > 1:
        raise ConfigError(f"{files[0]}: a second file, {files[1].name}, names classes too; leave only the right one")
    try:
        names = [line.strip() for line in files[0].read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{files[0]}: cannot be read ({error}); wanted the name of one class per line") from error
    while names and not names[-1]:
        names.pop()
    if not all(names) or len(set(names)) < len(names):
        raise ConfigError(f"{files[0]}: got an empty line or a name twice; wanted the name of one class per line")
    if (largest := max(map(int, found))) >= len(names):
        raise ConfigError(f"{files[0]}: got {len(names)} names of classes, but a video has the class {largest}")
    return {label: names[int(label)] for label in found}, f"Names of classes are from {files[0]}."
