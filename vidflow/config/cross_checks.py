"""Checks of settings that concern more than one field or a path; every problem begins with its key and a colon."""

import os
import re
from collections.abc import Callable
from pathlib import Path

from vidflow.config.encoder import is_path, misplaced_settings
from vidflow.config.encoding_checks import encoding_problems
from vidflow.config.paths import (
    NO_URLS,
    absolute_path,
    folder_problem,
    has_home,
    is_file,
    is_folder,
    is_url,
    nearest_existing,
)
from vidflow.config.roots import root_path
from vidflow.config.schema import Config, SplitNames
from vidflow.config.search import draw_candidates
from vidflow.config.tracking_uri import check_uri, show_value, split_credentials, sqlite_file, store_uri
from vidflow.errors import ConfigError
from vidflow.objects import is_object_url

_MAX_PATH = 4096
TABLES = (".csv", ".jsonl", ".parquet")
_CANDIDATES = (
    "features",
    "video.sampling.num_frames",
    *(f"trials.{name}" for name in ("axes", "algorithm", "num_samples", "scheduler", "objective")),
    *(f"trials.trial.{name}" for name in ("task", "features", "readout", "readout_dim", "readout_heads")),
    *(f"trials.trial.{name}" for name in ("core", "vtm_groups")),
)
_ENCODED = (
    *_CANDIDATES,
    *("adaptations", "augmentations", "encoder.family", "video.format", "video.crop", "resources.clips_per_pass"),
    *("resources.trials", "trials.trial.batch_size", "trials.trial.mix_depths"),
    *(f"trials.trial.{name}" for name in ("feed", "adaptation", "augmentation", "encoder_rate")),
    *(f"trials.trial.{name}" for name in ("standardize", "score_by", "label_smoothing")),
)
PATHS = ("root", "video.manifest", "video.video_root", "encoder.weights")


def _feature_problems(config: Config) -> list[str]:
    problems = []
    if config.encoder.family == "image" and config.encoder.img_size > config.video.size:
        problems.append(
            f"encoder.img_size: got {config.encoder.img_size}, wanted at most video.size = {config.video.size}: "
            "frames are never enlarged; set both"
        )
    if not config.features:
        problems.append("features: got none, wanted at least one feature set, such as `base: {depths: [-1]}`")
    for name, features in config.features.items():
        if len(set(features.depths)) != len(features.depths) or not features.depths:
            problems.append(f"features.{name}.depths: got {features.depths}, wanted different block numbers")
        if not name.replace("_", "").replace("-", "").isalnum():
            problems.append(f"features.{name}: a name may hold letters, digits, `-` and `_` only")
    return problems


def _adaptation_problems(config: Config) -> list[str]:
    problems = []
    if config.adaptations and config.encoder.family != "image":
        problems.append(
            f"adaptations: got {', '.join(config.adaptations)}, but encoder.family is {config.encoder.family!r}; only "
            "image encoders can be adapted"
        )
    for name, each in config.adaptations.items():
        key = f"adaptations.{name}"
        if not name.replace("_", "").replace("-", "").isalnum():
            problems.append(f"{key}: a name may hold letters, digits, `-` and `_` only")
        if len(set(each.places)) < len(each.places):
            problems.append(f"{key}.places: got {', '.join(each.places)}, wanted different places")
        if sorted(set(each.interpolate_after)) != each.interpolate_after:
            problems.append(f"{key}.interpolate_after: got {each.interpolate_after}, wanted rising numbers of blocks")
    return problems


def _source_problems(config: Config) -> list[str]:
    problems = _path_problems(config)
    if problems:
        return problems
    manifest = config.video.manifest
    if manifest is not None and is_object_url(manifest):
        if Path(manifest).suffix not in TABLES:
            problems.append(f"video.manifest: got {show_value(manifest)}, wanted a table there, such as *.csv")
    elif manifest is not None and not (is_file(manifest) or is_folder(manifest)):
        problems.append(f"video.manifest: no such file or folder: {show_value(manifest)}")
    elif (
        manifest is not None
        and not is_object_url(config.root)
        and Path(absolute_path(config.root)).is_relative_to(absolute_path(manifest))
    ):
        problems.append(
            f"root: got {show_value(config.root)}, which is inside the folder of videos, video.manifest = "
            f"{show_value(manifest)}; wanted another place, so that what is made is not taken for your videos"
        )
    family, weights = config.encoder.family, config.encoder.weights
    if is_path(family, weights) and not is_file(weights) and (family == "image" or not is_folder(weights)):
        wanted = "`hub`" if family == "image" else "an id on the Hugging Face hub, a folder"
        problems.append(
            f"encoder.weights: got {show_value(weights)}, wanted {wanted}, `random:SEED` or an existing file"
        )
    if family != "image" and weights == "hub":
        problems.append(
            "encoder.weights: got `hub`, wanted the model's id there, such as `google/vivit-b-16x2-kinetics400`"
        )
    if weights.startswith("random:") and not re.fullmatch(r"random:[0-9]{1,18}", weights):
        problems.append(f"encoder.weights: got {show_value(weights)}, wanted a whole number after `random:`")
    return problems


def _square_problems(config: Config) -> list[str]:
    video = config.video
    if video.short_side is not None and video.short_side < video.size:
        return [f"video.short_side: got {video.short_side}, wanted at least video.size = {video.size}, or null"]
    return []


def _split_problems(config: Config) -> list[str]:
    splits = config.trials.splits
    if config.video.manifest is None and splits != SplitNames():
        return [
            f"trials.splits: got {', '.join(splits.used)}; rendered videos have the splits train and val only: leave "
            "it out, or give your own videos in video.manifest"
        ]
    if len(set(splits.used)) < len(splits.used):
        return [f"trials.splits: got {', '.join(splits.used)}; wanted different splits"]
    return []


def _path_problems(config: Config) -> list[str]:
    """Return the problems of paths that their text shows, and of a root that is not a folder."""
    values = (config.root, config.video.manifest, config.video.video_root, config.encoder.weights)
    paths = dict(zip(PATHS, values, strict=True))
    problems = [
        f"{key}: got {problem}"
        for key, path in paths.items()
        if path is not None and (problem := _path_problem(key, path)) is not None
    ]
    if problems or is_object_url(config.root):
        return problems
    root = Path(absolute_path(config.root))
    # MLflow and Tune put the folder's name into addresses and parse it out of them again.
    if marks := [mark for mark in "%?#" if mark in str(root)]:
        problems.append(
            f"root: got {show_value(str(root))}, wanted a path without {' or '.join(f'`{mark}`' for mark in marks)}"
        )
    if (nearest := nearest_existing(root)) is not None and not nearest.is_dir():
        problems.append(f"root: {nearest} is a file, wanted a folder")
    return problems


def _path_problem(key: str, path: str) -> str | None:
    """Return what is wrong with the text of one path."""
    if key != "encoder.weights" and is_object_url(path):
        return None if (problem := _url_problem(path)) is None else f"{show_value(path)}, {problem}"
    if is_url(path):
        return f"{show_value(path)}, wanted a path on a disk: {NO_URLS}"
    if any(ord(letter) < ord(" ") for letter in path) or not path:
        return f"{show_value(path)}, wanted a path without control characters"
    if len(os.fsencode(path)) >= _MAX_PATH:
        return f"a path of {len(path)} letters, wanted fewer than {_MAX_PATH}"
    if path.startswith("~") and not has_home(path):
        return f"{show_value(path)}, wanted a user who has a home folder behind `~`"
    return None


def _url_problem(url: str) -> str | None:
    """Return what is wrong with the address of an object or prefix."""
    bucket, *parts = url.partition("://")[2].rstrip("/").split("/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]+", bucket):
        return "wanted the name of a bucket after `://`"
    if any(part in ("", ".", "..") for part in parts):
        return "wanted it without empty parts and without `.` and `..`"
    if not re.fullmatch(r"[\w./ =+@,()\[\]~-]*", "/".join(parts)):  # no `%?#`, and no control characters
        return "wanted letters, digits and plain marks only"
    return None


def _store_problems(config: Config) -> list[str]:
    """Return the problems of an experiment in an object store."""
    if config.resources.cache is not None and not Path(config.resources.cache).is_absolute():
        return [
            f"resources.cache: got {show_value(config.resources.cache)}, wanted an absolute path, the same on all nodes"
        ]
    if is_object_url(config.root) and config.tracking.uri is None:
        return [
            f"tracking.uri: required, as root = {show_value(config.root)} cannot hold the runs; wanted the http:// "
            "address of an MLflow server, or sqlite:///FILE on a disk of this machine"
        ]
    if is_object_url(config.root) and config.evaluate.fit_head is not None:
        return [
            f"evaluate.fit_head: got {show_value(config.evaluate.fit_head)} with root = {show_value(config.root)}; "
            "fitted models are folders on a disk: wanted a root on one, or no fit_head"
        ]
    return []


def writing_problem(config: Config) -> str | None:
    """Return why nothing can be written under the root or beside the sqlite file; None if writing works."""
    uri = store_uri(config)
    places = {"root": root_path(config)}
    if is_object_url(config.root):
        # The cache is checked like a root on a disk, and the store itself by what is written to it first: the lease.
        places = {"resources.cache": places["root"]}
    if uri.startswith("sqlite:"):
        places["tracking.uri"] = sqlite_file(uri).parent
    for key, path in places.items():
        nearest = nearest_existing(path) or path
        if (problem := folder_problem(nearest)) is not None:
            return f"{key}: {problem}; wanted a folder that you may write to, on a disk with free space"
    return None


def _tracking_problems(config: Config) -> list[str]:
    if config.tracking.uri is None:
        return []
    try:
        uri, _ = split_credentials(config.tracking.uri)
        check_uri(uri, num_hosts=1)
    except ConfigError as error:
        return [str(error)]
    return []


CROSS_CHECKS: tuple[tuple[tuple[str, ...], Callable[[Config], list[str]]], ...] = (
    (_CANDIDATES, lambda config: draw_candidates(config)[1]),
    (_ENCODED, encoding_problems),
    (("encoder",), lambda config: misplaced_settings(config.encoder)),
    (("encoder.family", "encoder.img_size", "video.size", "features"), _feature_problems),
    (("encoder.family", "adaptations"), _adaptation_problems),
    (("encoder.family", *PATHS), _source_problems),
    (("video.size", "video.short_side"), _square_problems),
    (("video.manifest", "trials.splits"), _split_problems),
    (("tracking",), _tracking_problems),
    (("root", "tracking", "resources.cache"), _store_problems),
)
"""The settings that a check reads, and the check: it returns the problems that concern more than one field."""
