"""Build a reducer by name, and reduce cached tokens with it.

Axes: B clips, T frames, H and W the grid, N = T x H x W tokens, M rows kept, D width.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar, assert_never, get_type_hints

from vidflow.errors import VidflowError
from vidflow.models.reduction.bipartite import BlockBipartite, PostBipartite
from vidflow.models.reduction.controls import (
    InputFewerFrames,
    InputLowerResolution,
    PostFewerFrames,
    PostPooling,
    PostRandom,
)
from vidflow.models.reduction.density_peaks import PostDensityPeaks
from vidflow.models.reduction.diversity import PostDiversity
from vidflow.models.reduction.in_block import BlockReducer
from vidflow.models.reduction.places import (
    Place,
    ReducerName,
    acts_in_blocks,
    acts_on_cache,
    acts_on_input,
    default_place,
    known_name,
    place_of,
)
from vidflow.models.reduction.quadtree import PostQuadtree
from vidflow.models.reduction.reducer import InputReducer, PostReducer
from vidflow.models.reduction.saliency import BlockSaliency
from vidflow.models.reduction.settings import fits, in_words
from vidflow.models.reduction.static_patches import InputStatic, PostDycoke, PostStatic, StaticSelection
from vidflow.models.reduction.windows import BlockWindows, PostWindows

Made = TypeVar("Made")


Reducer = InputReducer | InputLowerResolution | BlockReducer | PostReducer


def build_reducer(name: str, *, place: str | None = None, **settings: Any) -> Reducer | None:
    """Build a reducer.

    Args:
        name: Name of the reducer; `none` returns None.
        place: Where the reducer acts: `input` before the encoder, `block` inside it, `post` on cached tokens. None is
            the first of these that the reducer offers.
        settings: Keyword arguments of the reducer's class, documented there; a list stands for a tuple.

    Raises:
        VidflowError: The reducer or a setting does not exist, a value is out of range, or the reducer cannot act at
            this place.
    """
    known = known_name(name)
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    if known == "none":
        _refuse_settings(name, given, [])
        return None
    match acts := place_of(known, place):
        case "input":
            return _build_input(known, given)
        case "block":
            return _build_block(known, given)
        case "post":
            return _build_post(known, given)
        case _:
            assert_never(acts)


def _build_input(name: ReducerName, given: Mapping[str, Any]) -> InputReducer | InputLowerResolution:
    if not acts_on_input(name):
        raise _misplaced(name, "input")
    match name:
        case "evs":
            return InputStatic(selection=_make(StaticSelection, name, given))
        case "fewer_frames":
            return _make(InputFewerFrames, name, given)
        case "lower_resolution":
            return _make(InputLowerResolution, name, given)
        case _:
            assert_never(name)


def _build_block(name: ReducerName, given: Mapping[str, Any]) -> BlockReducer:
    if not acts_in_blocks(name):
        raise _misplaced(name, "block")
    match name:
        case "tome" | "drop" | "random_merge" | "random_drop" | "hybrid":
            return _make(BlockBipartite, name, given, mode=name)
        case "algm":
            return _make(BlockWindows, name, given)
        case "vidtldr":
            return _make(BlockSaliency, name, given)
        case _:
            assert_never(name)


def _build_post(name: ReducerName, given: Mapping[str, Any]) -> PostReducer:  # noqa: C901
    if not acts_on_cache(name):
        raise _misplaced(name, "post")
    match name:
        case "tome" | "drop" | "random_merge" | "random_drop" | "hybrid":
            return _make(PostBipartite, name, given, mode=name)
        case "algm":
            return _make(PostWindows, name, given)
        case "evs":
            return PostStatic(selection=_make(StaticSelection, name, given))
        case "fewer_frames":
            return _make(PostFewerFrames, name, given)
        case "dycoke":
            return _make(PostDycoke, name, given)
        case "sttm":
            return _make(PostQuadtree, name, given)
        case "density_peaks":
            return _make(PostDensityPeaks, name, given)
        case "divprune":
            return _make(PostDiversity, name, given)
        case "pool":
            return _make(PostPooling, name, given)
        case "random":
            return _make(PostRandom, name, given)
        case _:
            assert_never(name)


def _misplaced(name: ReducerName, place: Place) -> VidflowError:
    return VidflowError(
        f"reducer {name!r} cannot act at place {place!r}; leave the place out for {default_place(name)!r}"
    )


def _make(kind: type[Made], name: str, given: Mapping[str, Any], **fixed: Any) -> Made:
    """Construct a reducer after checking the names and types of its settings; its class checks their ranges."""
    hints = get_type_hints(kind)
    offered = [field for field in fields(kind) if field.name not in fixed]  # type: ignore[arg-type]
    _refuse_settings(name, given, [field.name for field in offered])
    for field in offered:
        if field.name in given and not fits(given[field.name], hints[field.name]):
            got = given[field.name]
            raise VidflowError(
                f"reducer {name!r} has {field.name} {list(got) if isinstance(got, tuple) else got!r}; "
                f"wanted {in_words(hints[field.name])}"
            )
        if field.name not in given and field.default is MISSING:
            raise VidflowError(f"reducer {name!r} has no {field.name}; wanted {in_words(hints[field.name])}")
    return kind(**given, **fixed)


def _refuse_settings(name: str, given: Mapping[str, Any], offered: list[str]) -> None:
    unknown = sorted(given.keys() - set(offered))
    if unknown:
        raise VidflowError(
            f"reducer {name!r} has no setting {', '.join(unknown)}; it has {', '.join(offered) if offered else 'none'}"
        )


__all__ = [
    "PostReducer",
    "Reducer",
    "build_reducer",
]
