"""Names of reducers and the places where they act, without torch, so that commands that only need these are fast."""

import difflib
from typing import Literal, TypeGuard, get_args

from vidflow.errors import VidflowError

Place = Literal["input", "block", "post"]
InputName = Literal["evs", "fewer_frames", "lower_resolution"]
BlockName = Literal["tome", "drop", "random_merge", "random_drop", "hybrid", "algm", "vidtldr"]
PostName = Literal[
    "tome",
    "drop",
    "random_merge",
    "random_drop",
    "hybrid",
    "algm",
    "evs",
    "fewer_frames",
    "dycoke",
    "sttm",
    "density_peaks",
    "divprune",
    "pool",
    "random",
]
ReducerName = Literal["none", BlockName, InputName, PostName]


def known_name(name: str) -> ReducerName:
    """Check a reducer's name and return it.

    Raises:
        VidflowError: There is no such reducer.
    """
    if not _is_name(name):
        nearest = difflib.get_close_matches(name, get_args(ReducerName), n=3, cutoff=0.4) or get_args(ReducerName)
        raise VidflowError(f"there is no reducer {name!r}; nearest: {', '.join(nearest)}")
    return name


def place_of(name: str, place: str | None) -> Place:
    """Return where a reducer acts; `build_reducer` checks whether it can act there.

    Args:
        name: Name of the reducer.
        place: The configured place; None is the first that the reducer offers.

    Raises:
        VidflowError: There is no such reducer or place.
    """
    acts = default_place(known_name(name)) if place is None else place
    if not _is_place(acts):
        raise VidflowError(f"reducer {name!r} has place {acts!r}; wanted one of {', '.join(get_args(Place))}")
    return acts


def default_place(name: ReducerName) -> Place:
    """Return where a reducer acts by default: the first place that it offers."""
    if acts_on_input(name):
        return "input"
    return "block" if acts_in_blocks(name) else "post"


def acts_on_input(name: str) -> TypeGuard[InputName]:
    """Say whether a reducer can act before the encoder."""
    return name in get_args(InputName)


def acts_in_blocks(name: str) -> TypeGuard[BlockName]:
    """Say whether a reducer can act inside the encoder."""
    return name in get_args(BlockName)


def acts_on_cache(name: str) -> TypeGuard[PostName]:
    """Say whether a reducer can act on cached tokens."""
    return name in get_args(PostName)


def _is_name(name: str) -> TypeGuard[ReducerName]:
    return name in get_args(ReducerName)


def _is_place(place: str) -> TypeGuard[Place]:
    return place in get_args(Place)


__all__ = [
    "Place",
    "ReducerName",
    "acts_in_blocks",
    "acts_on_cache",
    "acts_on_input",
    "default_place",
    "known_name",
    "place_of",
]
