"""What an encoder's settings must fulfil, checked in a second and without weights, before anything starts."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from vidflow.errors import ConfigError, VidflowError
from vidflow.models.encoder import check_img_size, patch_size_of, resolve_depths, skeleton
from vidflow.models.encoder.vit import TimmVit, check_blocks
from vidflow.models.reduction.bipartite import PostBipartite
from vidflow.models.reduction.build import build_reducer
from vidflow.models.reduction.controls import InputLowerResolution, PostRandom
from vidflow.models.reduction.density_peaks import PostDensityPeaks
from vidflow.models.reduction.diversity import PostDiversity
from vidflow.models.reduction.windows import PostWindows


def check_encoder(
    *,
    name: str,
    img_size: int,
    num_frames: int,
    depths: Sequence[Sequence[int]],
    reducers: Sequence[tuple[str, Mapping[str, Any]]],
) -> None:
    """Check name, input size and every feature set's depths and reducer against the architecture.

    Args:
        name: timm's name of the encoder.
        img_size: Side of its input in pixels.
        num_frames: Frames of a clip.
        depths: Blocks each feature set taps.
        reducers: Name and settings of each feature set's reducer.

    Raises:
        ConfigError: With every problem found.
    """
    try:
        vit = skeleton(name)
    except VidflowError as error:
        raise ConfigError(str(error)) from error
    patch_size, num_blocks = patch_size_of(vit), len(vit.blocks)
    checks: list[Callable[[], object]] = [partial(check_img_size, img_size, patch_size=patch_size, name=name)]
    checks += [partial(resolve_depths, wanted, num_blocks=num_blocks) for wanted in depths]
    checks += [partial(_check_reducer, vit, img_size, num_frames, reducer, settings) for reducer, settings in reducers]
    problems: list[str] = []
    for check in checks:
        try:
            check()
        except VidflowError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))


def _check_reducer(vit: TimmVit, img_size: int, num_frames: int, name: str, settings: Mapping[str, Any]) -> None:
    """Check a reducer's settings by themselves, then against the encoder's blocks and the size of a clip."""
    reducer = build_reducer(name, **settings)
    if reducer is None or isinstance(reducer, InputLowerResolution):
        return
    side = img_size // patch_size_of(vit)
    if reducer.place != "post":
        check_blocks(vit)
    if reducer.place == "block":
        reducer.check(depth=len(vit.blocks), grid=(side, side))
    if isinstance(reducer, PostBipartite | PostDensityPeaks | PostDiversity | PostRandom | PostWindows):
        reducer.check(num_frames=num_frames, grid=(side, side))


__all__ = ["check_encoder"]
