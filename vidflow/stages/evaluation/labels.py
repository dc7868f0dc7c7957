"""Match the labels of a manifest with the classes of a classifier, by name."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from vidflow.errors import ConfigError

_MAX_SHOWN = 10


def match_labels(
    labels: Sequence[str], class_names: Mapping[str, Sequence[str]], *, model: str
) -> dict[str, dict[str, int]]:
    """Return for each head the number of the class of every label.

    With one head a label is the name of a class. With the heads `verb` and `noun` it is both, with a space between.

    Args:
        labels: Labels of the clips, each once.
        class_names: Names of the classes of each head, in the order of the logits.
        model: Name of the model, for messages.

    Raises:
        ConfigError: If a label is no class of the classifier; the message has the nearest names.
    """
    numbers = {head: _number(names, model, head) for head, names in class_names.items()}
    found = {label: _parts(label, numbers) for label in labels}
    if missing := sorted(label for label, parts in found.items() if parts is None):
        names = sorted({name for each in class_names.values() for name in each})
        lines = [f"  {label!r}{_nearest(label, names)}" for label in missing[:_MAX_SHOWN]]
        more = f"\n  and {len(missing) - _MAX_SHOWN} more" if len(missing) > _MAX_SHOWN else ""
        raise ConfigError(
            f"evaluate.models.{model}: {len(missing)} of {len(labels)} labels of the manifest are no class of the "
            f"classifier, which has {' and '.join(f'{len(each)} ({head})' for head, each in class_names.items())}:\n"
            + "\n".join(lines)
            + more
            + "\nlabels are matched by name: write them as the classifier does, leave their rows out, or fit a new "
            "last layer with evaluate.fit_head=SPLIT"
        )
    return {head: {label: parts[head] for label, parts in found.items() if parts is not None} for head in class_names}


def read_class_names(files: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Read the files of class names, one name per line.

    Raises:
        ConfigError: If a file cannot be read, or has an empty line or a name twice.
    """
    names = {}
    for head, file in files.items():
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"class_names.{head}: {file} cannot be read: {error}") from error
        if not lines or not all(line.strip() for line in lines):
            raise ConfigError(f"class_names.{head}: {file} has an empty line; wanted one class name per line")
        names[head] = tuple(line.strip() for line in lines)
    return names


def _number(names: Sequence[str], model: str, head: str) -> dict[str, int]:
    numbers = {name: index for index, name in enumerate(names)}
    if len(numbers) != len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise ConfigError(f"evaluate.models.{model}: two classes of the head {head!r} are named {twice!r}")
    return numbers


def _parts(label: str, numbers: Mapping[str, Mapping[str, int]]) -> dict[str, int] | None:
    """Return the class of a label for each head, or None if there is none, or more than one way to cut the label."""
    if len(numbers) == 1:
        ((head, known),) = numbers.items()
        return {head: known[label]} if label in known else None
    verbs, nouns = numbers["verb"], numbers["noun"]
    words = label.split(" ")
    cuts = [(" ".join(words[:cut]), " ".join(words[cut:])) for cut in range(1, len(words))]
    fits = [(verb, noun) for verb, noun in cuts if verb in verbs and noun in nouns]
    return {"verb": verbs[fits[0][0]], "noun": nouns[fits[0][1]]} if len(fits) == 1 else None


def _nearest(label: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(label, names, n=3, cutoff=0.5)
    return f"; nearest: {', '.join(map(repr, near))}" if near else ""


__all__ = ["match_labels", "read_class_names"]
