"""The tables of the models' READMEs say what the code says, and the example there works."""

import re
from pathlib import Path
from textwrap import dedent
from typing import get_args

import torch
from token_reduction import reduce_clips

from vidflow.config.choices import MODELS
from vidflow.config.describe import find_settings
from vidflow.config.schema import CoreName

REDUCERS = MODELS / "reduction" / "README.md"


def table(path: Path, head: str) -> list[list[str]]:
    """Return the cells of the table whose first column has a heading."""
    rows = path.read_text().split(f"| {head} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def words(cell: str) -> tuple[str, ...]:
    return tuple(re.findall(r"`(\w+)`", cell))


def test_the_table_of_reducers_has_all_with_their_settings_places_and_papers():
    written = {
        (name, place, words(settings)): paper
        for names, settings, place, paper in table(REDUCERS, "method")
        for name in words(names)
    }
    choices = find_settings("features.x.reducer.name")[0].settings[0].choices[1:]
    said = {(choice.word, choice.place, tuple(s.key for s in choice.settings)): choice for choice in choices}
    assert written.keys() == said.keys()
    assert all((paper == "a control") == (not said[key].source) for key, paper in written.items())
    # The year stands in the source that the docstring names.
    assert all(year in said[key].source for key, paper in written.items() for year in re.findall(r"\b20\d\d\b", paper))


def test_the_table_of_cores_has_all():
    written = [name for name, *_ in table(MODELS / "cores" / "README.md", "core")]
    assert tuple(words("".join(written))) == get_args(CoreName)


def test_the_reducer_of_the_readme_works():
    example = dedent(re.search(r" *```python\n(.*?) *```", REDUCERS.read_text(), re.DOTALL)[1])
    names = {"__name__": "example"}
    exec(
        "from dataclasses import dataclass\nimport torch\nfrom jaxtyping import Float, Int\nfrom torch import Tensor\n"
        "from vidflow.errors import VidflowError\n"
        "from vidflow.models.reduction.assignment import Assignment, group_tokens\n"
        f"from vidflow.models.reduction.reducer import PostReducer\n{example}",
        names,
    )
    reducer = names["PostStripes"](columns=2)
    tokens = torch.arange(12.0).view(1, 2, 2, 3, 1)
    reduced = reduce_clips(reducer, tokens)
    assert reduced.tokens.flatten().tolist() == [0.5, 2, 3.5, 5, 6.5, 8, 9.5, 11]
    assert reduced.counts.tolist() == [[4, 4]]
    assert reducer.is_even
    assert not reducer.is_random
