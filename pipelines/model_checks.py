"""Check encoder, reducers, cores and readouts against one another, and remember what has passed.

The check imports torch and timm, which takes seconds. So a configuration that has passed is remembered in the user's
cache folder, under a key of everything that the check reads.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from vidflow.config.encoder import encoder_title
from vidflow.config.fingerprints import fingerprint
from vidflow.config.paths import cache_folder
from vidflow.config.schema import Config
from vidflow.config.search import draw_candidates, key_of
from vidflow.errors import VidflowError
from vidflow.store.layout import publish_json, read_sealed

_SOURCES = Path(__file__).parents[1] / "vidflow"
_FLOAT32, _FLOAT16 = 4, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSizes:
    """What the models of an experiment take.

    Attributes:
        clip_bytes: Name of a feature set -> bytes of a clip's tokens, as stored without token reduction.
        encoder_bytes: Bytes of the encoder's blocks in single precision.
    """

    clip_bytes: dict[str, int]
    encoder_bytes: int


def check_models(config: Config, even: Sequence[str], *, with_trials: bool) -> tuple[list[str], ModelSizes | None]:
    """Return what does not fit; if all fits, nothing and the sizes.

    Args:
        config: The experiment.
        even: Names of the feature sets that trials read as stored.
        with_trials: Whether to check cores and readouts too.
    """
    note = _locate_note(config, even) if with_trials else None
    if note is not None and (known := read_sealed(note)) is not None:
        return [], ModelSizes(clip_bytes=known["clip_bytes"], encoder_bytes=known["encoder_bytes"])
    problems, sizes = _check(config, even, with_trials)
    if sizes is not None and note is not None:
        with contextlib.suppress(OSError):  # a cache that cannot be written only costs the time of the next check
            note.parent.mkdir(parents=True, exist_ok=True)
            publish_json(note, asdict(sizes))
    return problems, sizes


def _check(config: Config, even: Sequence[str], with_trials: bool) -> tuple[list[str], ModelSizes | None]:
    if config.encoder.family != "image":
        return _check_video(config, with_trials)
    # Imported here, because it takes seconds.
    from vidflow.models.encoder import patch_size_of, shape_of, skeleton
    from vidflow.models.encoder.adapted import adaptation_problems
    from vidflow.models.encoder.checks import check_encoder, frames_left, merged_problems
    from vidflow.models.encoder.hub import check_hub
    from vidflow.training.checks import find_encoding_problems, find_group_problems, find_module_problems

    encoder, num_frames = config.encoder, config.video.sampling.num_frames
    problems = _problems_of(
        lambda: check_encoder(
            name=encoder.name, img_size=encoder.img_size, num_frames=num_frames, features=config.features, even=even
        )
    )
    try:
        vit = skeleton(encoder.name)
    except VidflowError:  # is among the problems
        return problems, None
    shape = shape_of(vit)
    try:
        problems += merged_problems(config)
    except VidflowError as error:
        problems += str(error).splitlines()
    for name, adaptation in config.adaptations.items():
        problems += [f"adaptations.{name}.{problem}" for problem in adaptation_problems(vit, adaptation)]
    if encoder.weights == "hub":
        problems += _problems_of(lambda: check_hub(encoder.name))
    num_depths = {name: len(features.depths) for name, features in config.features.items()}
    if with_trials:
        problems += find_module_problems(config, embed_dim=shape.embed_dim, num_depths=num_depths)
        problems += dict.fromkeys(find_encoding_problems(config)) if not problems else []
        problems += dict.fromkeys(find_group_problems(config, num_frames=frames_left(config))) if not problems else []
        problems += _class_token_problems(config, has_one=vit.cls_token is not None)
    if problems:
        return problems, None
    num_patches = (encoder.img_size // patch_size_of(vit)) ** 2
    tokens = {name: num_frames * (number * num_patches + shape.num_prefix) for name, number in num_depths.items()}
    return [], ModelSizes(
        clip_bytes={name: number * shape.embed_dim * _FLOAT16 for name, number in tokens.items()},
        encoder_bytes=shape.depth * (shape.attention_weights + shape.mlp_weights) * _FLOAT32,
    )


def _check_video(config: Config, with_trials: bool) -> tuple[list[str], ModelSizes | None]:
    # Imported here, because it takes seconds.
    from vidflow.models.encoder.configured import video_recipe
    from vidflow.models.encoder.video.checks import video_problems
    from vidflow.models.encoder.video.loaded import outline_of
    from vidflow.training.checks import find_group_problems, find_module_problems

    recipe = video_recipe(config.encoder)
    tasks = sorted({trial.task for trial in draw_candidates(config)[0]}) if with_trials else []
    problems = video_problems(recipe, config.video, config.features, tasks)
    try:
        geometry, shape = outline_of(recipe)
    except VidflowError:  # is among the problems
        return problems, None
    if with_trials:
        num_depths = dict.fromkeys(config.features, 1)
        problems += find_module_problems(config, embed_dim=shape.embed_dim, num_depths=num_depths)
        problems += _class_token_problems(config, has_one=shape.num_prefix > 0)
        problems += dict.fromkeys(
            find_group_problems(config, num_frames=config.video.sampling.num_frames // geometry.tubelet)
        )
    if problems:
        return problems, None
    num_windows = config.video.sampling.num_frames // geometry.num_frames
    num_tokens = num_windows * (shape.num_patches + shape.grid[0] * shape.num_prefix)
    block = 4 * shape.embed_dim**2 + 2 * shape.embed_dim * shape.mlp_width
    return [], ModelSizes(
        clip_bytes=dict.fromkeys(config.features, num_tokens * shape.embed_dim * _FLOAT16),
        encoder_bytes=shape.depth * block * _FLOAT32,
    )


def _class_token_problems(config: Config, *, has_one: bool) -> list[str]:
    """Return a problem if a trial reads the class token of an encoder that has none."""
    from vidflow.training.recipe import reads_class_token

    if has_one or not any(map(reads_class_token, draw_candidates(config)[0])):
        return []
    return [
        f"{key_of(config.trials, 'readout')}: got `class_token`, but {encoder_title(config.encoder)} has none; use "
        "`attention`"
    ]


def _problems_of(check: Callable[[], None]) -> list[str]:
    try:
        check()
    except VidflowError as error:
        return str(error).splitlines()
    return []


def _locate_note(config: Config, even: Sequence[str]) -> Path | None:
    folder = cache_folder()
    if folder is None:
        return None
    weights = Path(config.encoder.weights)
    about = {
        "encoder": asdict(config.encoder),
        "features": {name: asdict(features) for name, features in config.features.items()},
        "adaptations": {name: asdict(each) for name, each in config.adaptations.items()},
        "trials": asdict(config.trials),
        "clips": [config.video.size, config.video.sampling.num_frames],
        "even": list(even),
        "versions": [_version(name) for name in ("torch", "timm", "transformers")],
        "weights": _stamps([*sorted(weights.glob("*.json")), *([weights] if weights.is_file() else [])]),
        "sources": _stamps([Path(__file__), *sorted(_SOURCES.rglob("*.py"))]),
    }
    return folder / "models" / f"{fingerprint(about)}.json"


def _stamps(files: Sequence[Path]) -> list[list[object]]:
    return [[str(file), file.stat().st_mtime_ns] for file in files]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # transformers is not always installed
        return ""


__all__ = ["ModelSizes", "check_models"]
