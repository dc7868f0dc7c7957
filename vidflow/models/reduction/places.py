"""Names of reducers and the places where they act; no torch, so that a command can look where features lie."""

import difflib
from typing import Literal, TypeGuard, assert_never, get_args

from vidflow.errors import VidflowError

Place = Literal["input", "block", "post"]
ReducerName = Literal[
    "none",
    "tome",
    "drop",
    "random_merge",
    "random_drop",
    "hybrid",
    "algm",
    "vidtldr",
    "evs",
    "dycoke",
    "sttm",
    "density_peaks",
    "divprune",
    "pool",
    "fewer_frames",
    "lower_resolution",
    "random",
]


def known_name(name: str) -> ReducerName:
    """Return a reducer's name.

    Raises:
        VidflowError: No such reducer.
    """
    if not _is_name(name):
        nearest = difflib.get_close_matches(name, get_args(ReducerName), n=3, cutoff=0.4) or get_args(ReducerName)
        raise VidflowError(f"there is no reducer {name!r}; nearest: {', '.join(nearest)}")
    return name


def place_of(name: str, place: str | None) -> Place:
    """Return where a reducer acts; whether it can act there is checked when it is built.

    Args:
        name: Which one.
        place: The place that is asked for; None is the first that the reducer offers.

    Raises:
        VidflowError: No such reducer or place.
    """
    acts = default_place(known_name(name)) if place is None else place
    if not _is_place(acts):
        raise VidflowError(f"reducer {name!r} has place {acts!r}; wanted one of {', '.join(get_args(Place))}")
    return acts


def default_place(name: ReducerName) -> Place:
    """Return where a reducer acts unless told otherwise; the first place that it offers."""
    match name:
        case "evs" | "fewer_frames" | "lower_resolution":
            return "input"
        case "tome" | "drop" | "random_merge" | "random_drop" | "hybrid" | "algm" | "vidtldr":
            return "block"
        case "none" | "dycoke" | "sttm" | "density_peaks" | "divprune" | "pool" | "random":
            return "post"
        case _:
            assert_never(name)


def _is_name(name: str) -> TypeGuard[ReducerName]:
    return name in get_args(ReducerName)


def _is_place(place: str) -> TypeGuard[Place]:
    return place in get_args(Place)


__all__ = ["Place", "ReducerName", "default_place", "known_name", "place_of"]
