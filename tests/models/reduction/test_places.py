"""Where a reducer acts is known by its name, without torch, and is where it can be built."""

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from vidflow.errors import VidflowError
from vidflow.models.reduction.build import build_reducer
from vidflow.models.reduction.places import (
    Place,
    ReducerName,
    acts_in_blocks,
    acts_on_cache,
    acts_on_input,
    default_place,
    place_of,
)

NAMES = [name for name in get_args(ReducerName) if name != "none"]
NEEDED = {"evs": {"prune": 0.5}, "vidtldr": {"num_merged": [1]}}
BUDGETED = {"tome", "drop", "random_merge", "random_drop", "hybrid", "density_peaks", "divprune", "random"}


@pytest.mark.parametrize("name", NAMES)
def test_a_reducer_acts_first_where_it_is_built_first_and_only_where_it_offers(name):
    settings = {"keep": 0.5} if name in BUDGETED else NEEDED.get(name, {})
    assert build_reducer(name, **settings).place == default_place(name) == place_of(name, None)
    offers = {"input": acts_on_input(name), "block": acts_in_blocks(name), "post": acts_on_cache(name)}
    for place in get_args(Place):
        if offers[place]:
            assert build_reducer(name, place=place, **settings).place == place
        else:
            with pytest.raises(VidflowError, match=f"cannot act at place '{place}'"):
                build_reducer(name, place=place, **settings)


def test_torch_is_not_imported_to_know_it():
    code = (
        "import sys; from vidflow.models.reduction.places import place_of; "
        "sys.exit(place_of('tome', 'post') != 'post' or any(name in sys.modules for name in ('torch', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False).returncode == 0
