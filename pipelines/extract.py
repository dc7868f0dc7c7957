"""Encode shards once with the frozen encoder: `vidflow extract CONFIG.yaml`."""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from pipelines.commit import commit_units
from pipelines.entry import run_stage
from pipelines.placement import Placement, usable_device
from pipelines.ray_pool import log
from pipelines.ray_session import place, ray_session
from vidflow.config.encoder import encoder_title
from vidflow.config.fingerprints import clip_settings
from vidflow.config.roots import bound_cache
from vidflow.config.schema import Config, FeatureSet
from vidflow.counts import Count
from vidflow.errors import VidflowError
from vidflow.models.encoder.configured import build_clip_encoder
from vidflow.models.reduction.build import PostReducer, build_reducer
from vidflow.records import Reject, StageManifest
from vidflow.stages.address import Address
from vidflow.stages.experiment import Experiment, dense_features, is_reduced_from_cache
from vidflow.stages.extract import Extractor, ExtractUnit
from vidflow.stages.finish import REJECTS_TABLE, finish_stage
from vidflow.stages.reduce import ReduceUnit, TokenReducer
from vidflow.stages.views import Views
from vidflow.store.features import CLIPS_TABLE, ClipRow, FeatureFile
from vidflow.store.layout import FileEntry
from vidflow.store.rows import iterate_rows
from vidflow.video.augmented_targets import label_pairs

Unit = TypeVar("Unit", ExtractUnit, ReduceUnit)


def main(experiment: Experiment) -> None:
    """Make the missing feature sets; those that reduce cached tokens are made from the dense ones."""
    config = experiment.config
    with experiment.exclusive(), ray_session(config):
        placement = place(config, "extract")
        shards = experiment.finished_shards.address
        for name, address in experiment.stored_features.items():
            features = config.features[name]
            if experiment.manifest(address) is not None:
                continue
            if not is_reduced_from_cache(features):
                _extract(experiment, name, features, placement, shards, address)
                continue
            dense = experiment.dense(name)
            if experiment.manifest(dense) is None:
                _extract(experiment, f"{name}, dense", dense_features(features), placement, shards, dense)
            _reduce(experiment, name, placement, dense, address)


def _extract(
    experiment: Experiment, name: str, features: FeatureSet, placement: Placement, shards: Address, address: Address
) -> None:
    config = experiment.config
    if config.encoder.weights.startswith("random:"):
        log.warning(
            "extract: %s has RANDOM weights (%s), not pre-trained ones",
            encoder_title(config.encoder),
            config.encoder.weights,
        )
    manifest = experiment.finished(shards)
    metadata = {
        "fingerprint": address.fingerprint,
        "settings": address.settings,
        "class_names": manifest.details["class_names"],
        "num_frames": config.video.sampling.num_frames,
        "clip": clip_settings(config),
    }
    build = functools.partial(
        build_extractor, config, features, shards.directory, address.directory, metadata, placement
    )
    _make(experiment, name, build, extract_units(manifest), placement, shards, address, features)


def extract_units(manifest: StageManifest) -> list[ExtractUnit]:
    """Return one unit of extraction for every shard in the manifest of the shard stage."""
    return [
        ExtractUnit(
            file=_feature_file(row["file"]),
            shard=row["file"],
            source_sha256=row["sha256"],
            num_clips=row["num_clips"],
        )
        for row in manifest.files
    ]


def _reduce(experiment: Experiment, name: str, placement: Placement, dense: Address, address: Address) -> None:
    units = [
        ReduceUnit(file=row["file"], dense=row["file"], source_sha256=row["sha256"], num_clips=row["num_clips"])
        for row in experiment.finished(dense).files
    ]
    metadata = {"fingerprint": address.fingerprint, "settings": address.settings}
    build = functools.partial(
        build_token_reducer, experiment.config, name, dense.directory, address.directory, metadata
    )
    _make(experiment, name, build, units, placement, dense, address, experiment.config.features[name])


def _make(
    experiment: Experiment,
    name: str,
    build: Callable[[], Callable[[Any, Count], FileEntry]],
    units: Sequence[Unit],
    placement: Placement,
    source: Address,
    address: Address,
    features: FeatureSet,
) -> None:
    """Make and commit one feature set from the files of `source`."""
    if not units:
        raise VidflowError(f"{source.directory}: no clips to make features of; see {source.directory / REJECTS_TABLE}")
    started = time.monotonic()
    entries, made = commit_units(
        address.directory,
        build,
        units,
        placement,
        name=f"extract {name}",
        num_clips=lambda unit: unit.num_clips,
        # A shard can be made again with more clips, for example if a video could not be read before.
        is_current=lambda unit, entry: entry.details.get("source") == unit.source_sha256,
        isolates=isinstance(units[0], ExtractUnit),
    )
    rejects = [Reject(**row) for entry in entries for row in entry.rejects]
    finish_stage(
        address,
        stage=f"extract/{name}",
        entries=entries,
        clips=clip_rows(source, rejects, views_of(experiment.config, features, [])),
        rejects=rejects,
        wall_seconds=time.monotonic() - started,
        metadata=FeatureFile(address.directory / entries[0].file, entries[0].sha256).metadata,
    )
    experiment.published("extract")
    num_clips = sum(entry.num_clips for entry in made)
    log.info(
        "extract: %s, %d clips, %.1f MB -> %s (%.1f clips/s)%s",
        name,
        num_clips,
        sum(entry.num_bytes for entry in made) / 1e6,
        address.directory,
        num_clips / (time.monotonic() - started),
        experiment.then("sweep"),
    )


def _feature_file(shard: str) -> str:
    return f"{Path(shard).stem}.arrow"


def build_token_reducer(
    config: Config, name: str, dense: Path, directory: Path, metadata: dict[str, Any]
) -> TokenReducer:
    """Build the worker that reduces cached tokens."""
    bound_cache(config)
    torch.set_num_threads(max(1, int(config.resources.extract.num_cpus)))
    reducer = config.features[name].reducer
    made = build_reducer(reducer.name, place=reducer.place, **reducer.settings)
    assert isinstance(made, PostReducer)
    return TokenReducer(made, dense=dense, directory=directory, metadata=metadata)


def build_extractor(
    config: Config,
    features: FeatureSet,
    shards: Path,
    directory: Path,
    metadata: dict[str, Any],
    placement: Placement,
) -> Extractor:
    """Build the worker, with its encoder, device and threads, on the machine where it runs."""
    bound_cache(config)
    num_threads = max(1, int(placement.num_cpus))
    torch.set_num_threads(num_threads)
    encoder = build_clip_encoder(config.encoder, features, device=usable_device(placement))
    return Extractor(
        encoder,
        shards=shards,
        directory=directory,
        metadata=metadata,
        frames_per_batch=config.resources.frames_per_batch,
        # An encoder on the CPU already uses all cores.
        num_decompressors=num_threads if placement.device == "cuda" else 1,
        views=views_of(config, features, metadata["class_names"]),
    )


def views_of(config: Config, features: FeatureSet, class_names: Sequence[str]) -> Views | None:
    """Return the views that a feature set stores; None if it has the plain one only.

    Raises:
        VidflowError: If a class that a mirrored clip exchanges does not exist.
    """
    if features.views == 1:
        return None
    assert features.augmentation is not None, "see the checks of the config"
    augmentation = config.augmentations[features.augmentation]
    try:
        pairs = label_pairs(augmentation.flip_labels, class_names) if class_names else {}
    except ValueError as error:
        raise VidflowError(f"augmentations.{features.augmentation}.{error}") from error
    return Views(number=features.views, augmentation=augmentation, split=config.trials.splits.train, label_pairs=pairs)


def clip_rows(source: Address, rejects: list[Reject], views: Views | None) -> Iterator[ClipRow]:
    """Yield the file and row of each plain clip; the other views of a clip follow it in its file."""
    left_out = {reject.key for reject in rejects}
    last, position = "", 0
    for row in iterate_rows(source.directory / CLIPS_TABLE, ClipRow):
        if row.key in left_out:
            continue
        file = _feature_file(row.file)
        position = position if file == last else 0
        yield ClipRow(key=row.key, label=row.label, split=row.split, file=file, row=position, video=row.video)
        last, position = file, position + (1 if views is None else views.count(row.split))


if __name__ == "__main__":
    run_stage("extract", main)
