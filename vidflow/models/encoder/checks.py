"""Check an encoder's settings before anything starts; this takes a second and needs no weights."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from vidflow.config.schema import Config, FeatureSet
from vidflow.config.search import draw_candidates, key_of
from vidflow.errors import ConfigError, VidflowError
from vidflow.models.encoder import check_img_size, patch_size_of, resolve_depths, shape_of, skeleton
from vidflow.models.encoder.clip_parts import check_joint
from vidflow.models.encoder.merged_file import MergedRecord, read_record
from vidflow.models.encoder.vit import TimmVit, check_blocks
from vidflow.models.reduction.build import Reducer, build_reducer
from vidflow.models.reduction.macs import VitShape
from vidflow.models.weights import weights_kind


def check_encoder(
    *,
    name: str,
    img_size: int,
    num_frames: int,
    features: Mapping[str, FeatureSet],
    even: Collection[str] = (),
) -> None:
    """Check name, input size and every feature set's depths and reducer against the architecture.

    Args:
        name: timm's name of the encoder.
        img_size: Side of its input in pixels.
        num_frames: Frames of a clip.
        features: The feature sets by name.
        even: Names of the feature sets that trials read as stored; all their frames and depths must have equally many
            tokens.

    Raises:
        ConfigError: There are problems; the message lists all of them.
    """
    try:
        vit = skeleton(name)
    except VidflowError as error:
        raise ConfigError(str(error)) from error
    patch_size, num_blocks = patch_size_of(vit), len(vit.blocks)
    side = img_size // patch_size
    shape = replace(shape_of(vit), grid=(side, side))
    problems = _collect("", partial(check_img_size, img_size, patch_size=patch_size, name=name))
    for key, each in features.items():
        found = [
            *_collect(f"features.{key}.depths: ", partial(resolve_depths, each.depths, num_blocks=num_blocks)),
            *_collect(f"features.{key}.reducer: ", partial(_check_reducer, vit, shape, num_frames, each)),
        ]
        if key in even and not found:
            found = _collect("", partial(_check_even, shape, key, each))
        problems += found
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))


def merged_problems(config: Config) -> list[str]:
    """Return what does not fit a file of merged adapters, if `encoder.weights` is one; each begins with its key.

    Raises:
        VidflowError: The file is damaged.
    """
    encoder, num_frames = config.encoder, config.video.sampling.num_frames
    record = _merged_record(config)
    if record is None:
        return []
    problems = []
    if record.name != encoder.name:
        problems.append(
            f"encoder.name: got {encoder.name!r}, wanted {record.name!r}, whose adapters encoder.weights holds"
        )
    if record.temporal_embedding and record.num_frames != num_frames:
        problems.append(
            f"video.sampling.num_frames: got {num_frames}, wanted {record.num_frames}, as encoder.weights holds a "
            "temporal embedding of so many frames"
        )
    # A section that no trial uses is allowed: the file's own recipe has one.
    used = dict.fromkeys(trial.adaptation for trial in draw_candidates(config)[0] if trial.adaptation is not None)
    if used:
        problems.append(
            f"{key_of(config.trials, 'adaptation')}: got {', '.join(used)}, but encoder.weights holds merged adapters "
            "already; take the weights that they were trained on, or no adaptation"
        )
    check = partial(_check_joint, interpolates=bool(record.interpolate_after))
    for name, features in config.features.items():
        problems += _collect(f"features.{name}.reducer: ", partial(check, features))
    if record.interpolate_after:
        tasks = {trial.task for trial in draw_candidates(config)[0]} - {"classification"}
        problems += [
            f"{key_of(config.trials, 'task')}: got {task}, which has ground truth for every frame, but encoder.weights "
            "makes one frame of several (InTI); wanted classification"
            for task in sorted(tasks)
        ]
    return problems


def frames_left(config: Config) -> int:
    """Return how many frames of a clip a frozen image encoder gives; merged InTI layers make one frame of several.

    Raises:
        VidflowError: The file of weights is damaged.
    """
    num_frames = config.video.sampling.num_frames
    for _ in merged_layers(config):
        num_frames = -(-num_frames // 2)
    return num_frames


def merged_layers(config: Config) -> tuple[int, ...]:
    """Return the blocks behind which the file of weights has an InTI layer.

    Raises:
        VidflowError: The file of weights is damaged.
    """
    record = _merged_record(config)
    return () if record is None else record.interpolate_after


def _merged_record(config: Config) -> MergedRecord | None:
    """Return what `encoder.weights` says if it is a file of merged adapters; else None."""
    weights = config.encoder.weights
    return read_record(Path(weights)) if weights_kind(weights) == "file" else None


def _check_joint(features: FeatureSet, *, interpolates: bool) -> None:
    check_joint(_build(features), interpolates=interpolates)


def _collect(key: str, check: Callable[[], object]) -> list[str]:
    """Return the problem that a check raises, if any, behind the key of the setting."""
    try:
        check()
    except VidflowError as error:
        return [f"{key}{error}"]
    return []


def find_uneven(reducer: Reducer, shape: VitShape, depths: Sequence[int]) -> Literal["frames", "depths"] | None:
    """Say whether a reducer's settings make token counts differ between frames or between depths; None if neither.

    Args:
        reducer: The reducer.
        shape: The encoder.
        depths: Tapped blocks; negative counts from the last.
    """
    if not reducer.is_even:
        return "frames"
    tokens = reducer.tokens_left(shape) if reducer.place == "block" else None
    if tokens is None:
        return None
    tapped = {tokens[depth + 1] for depth in resolve_depths(depths, num_blocks=shape.depth)}
    return "depths" if len(tapped) > 1 else None


def _build(features: FeatureSet) -> Reducer | None:
    reducer = features.reducer
    return build_reducer(reducer.name, place=reducer.place, **reducer.settings)


def _check_reducer(vit: TimmVit, shape: VitShape, num_frames: int, features: FeatureSet) -> None:
    """Check a reducer's settings alone, then against the encoder's blocks and the size of a clip."""
    reducer = _build(features)
    if reducer is not None:
        if reducer.splits_blocks:
            check_blocks(vit)
        reducer.check(shape, num_frames=num_frames)


def _check_even(shape: VitShape, name: str, features: FeatureSet) -> None:
    reducer = _build(features)
    where = None if reducer is None else find_uneven(reducer, shape, features.depths)
    if where is not None:
        raise VidflowError(
            f"trials.trial.unmerge: got false for features {name!r}, whose reducer {features.reducer.name!r} leaves "
            f"other numbers of tokens in other {where}, which make no whole batches; set `unmerge: true`, or "
            + ("keep one depth only" if where == "depths" else "take a reducer that leaves as many in every frame")
        )


__all__ = ["check_encoder", "find_uneven", "frames_left", "merged_layers", "merged_problems"]
