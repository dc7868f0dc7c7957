"""Which clips and squares of a video a protocol shows to a model, as settings of the shards that hold them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from vidflow.config.schema import Config, Sampling, Video
from vidflow.errors import ConfigError
from vidflow.models.encoder.video.geometry import ClipGeometry
from vidflow.video.decode import Crop

# V-JEPA 2's own preprocessing resizes the short side to this multiple of the square.
_WIDER = 256 / 224
_PUBLISHED_FPS = 30.0
# Frames of a clip and their stride, in frames of a video at 30 per second.
_STRIDES = {
    "k400": {"vivit": 2, "videomae": 1, "timesformer": 32, "motionformer": 4},
    "epic": {"vivit": 2, "videomae": 2, "timesformer": 8, "motionformer": 4},
}
_GREY_MEAN, _GREY_STD = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A way to see every video.

    Attributes:
        name: Name of the square.
        config: The experiment whose shards hold these clips.
    """

    name: str
    config: Config


def list_views(config: Config, name: str, geometry: ClipGeometry) -> list[View]:
    """Return the views of a model under the protocol; their shards have the same clips in different squares.

    Args:
        config: The experiment.
        name: Name of the model.
        geometry: The clips that it wants.

    Raises:
        ConfigError: If the protocol does not say how to see this model's clips.
    """
    evaluate, model = config.evaluate, config.evaluate.models[name]
    size = geometry.img_size
    base = replace(config.video, size=size, crop="center", short_side=None, splits=_splits(config))
    match evaluate.protocol:
        case "centre":
            short_side = _scaled(size, _WIDER) if model.family == "vjepa2" else None
            videos = [replace(base, sampling=_centre(geometry, 1), short_side=short_side)]
        case "multiview":
            sampling = _centre(geometry, evaluate.num_clips)
            crops: Sequence[Crop] = ("left", "center", "right") if evaluate.three_crops else ("center",)
            videos = [replace(base, sampling=sampling, crop=crop) for crop in crops]
        case "paper":
            videos = [_published(config, name, geometry, base)]
        case _:
            assert_never(evaluate.protocol)
    return [View(name=video.crop, config=replace(config, video=_plain(video))) for video in videos]


def published_pixels(config: Config, name: str, geometry: ClipGeometry) -> ClipGeometry:
    """Return the clips of a model, normalised as the protocol says.

    Source: the released configurations of "Video, How Do Your Tokens Merge?" (Pollard and Wray, 2025), which normalise
    ViViT and TimeSformer with 0.45 and 0.225, although ViViT was trained on pixels in [-1, 1].
    """
    if config.evaluate.protocol != "paper" or config.evaluate.models[name].family not in ("vivit", "timesformer"):
        return geometry
    return replace(geometry, mean=_GREY_MEAN, std=_GREY_STD, input_range=(0.0, 1.0))


def count_padded(clip_times: Sequence[Sequence[float]]) -> int:
    """Count the clips at whose end the last frame of a shorter video is repeated."""
    return sum(len(times) > 1 and times[-1] == times[-2] for times in clip_times)


def _splits(config: Config) -> list[str]:
    """Return the splits whose clips are needed; no other video is decoded."""
    return list(dict.fromkeys(split for split in (config.evaluate.split, config.evaluate.fit_head) if split))


def _centre(geometry: ClipGeometry, num_clips: int) -> Sampling:
    if geometry.fps == "uniform":
        return Sampling(mode="uniform", num_frames=geometry.num_frames)
    return Sampling(mode="spread", num_frames=geometry.num_frames, fps=geometry.fps, num_clips=num_clips)


def _published(config: Config, name: str, geometry: ClipGeometry, base: Video) -> Video:
    """Return the clips of the released configurations: one clip, one square.

    The first clip of T frames at stride s spans s T frames of a video at 30 frames per second; frames are spaced evenly
    from its first to its last, as in the loader that the configurations use, so they are (s T - 1) / (T - 1) apart.
    """
    evaluate, family = config.evaluate, config.evaluate.models[name].family
    if evaluate.data_set is None:
        raise ConfigError("evaluate.protocol is 'paper'; set evaluate.data_set to k400, ssv2 or epic")
    num_frames, size = geometry.num_frames, geometry.img_size
    if evaluate.data_set == "ssv2":
        if family == "vjepa2":
            raise _unpublished(name)
        return replace(base, sampling=Sampling(mode="segments", num_frames=num_frames), crop="left")
    if family not in _STRIDES[evaluate.data_set]:
        raise _unpublished(name)
    covered = _STRIDES[evaluate.data_set][family] * num_frames
    fps = _PUBLISHED_FPS * (num_frames - 1) / (covered - 1)
    short_side = _scaled(size, _WIDER) if evaluate.data_set == "k400" else None
    return replace(base, sampling=Sampling(mode="first", num_frames=num_frames, fps=fps), short_side=short_side)


def _unpublished(name: str) -> ConfigError:
    return ConfigError(
        f"evaluate.protocol is 'paper', but the paper does not run models like {name!r} (vjepa2); evaluate it with "
        "`centre` or `multiview`"
    )


def _scaled(size: int, factor: float) -> int:
    return round(size * factor)


def _plain(video: Video) -> Video:
    """Return the same settings as one would write them: a short side of `size` is null."""
    return replace(video, short_side=None) if video.short_side == video.size else video


__all__ = ["View", "count_padded", "list_views", "published_pixels"]
