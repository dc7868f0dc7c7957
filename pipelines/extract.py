"""Encode shards once with the frozen encoder: `vidflow extract CONFIG.yaml`."""

import functools
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pipelines.cli import run_stage
from pipelines.job import commit_units, log
from vidflow.config.fingerprints import clip_settings
from vidflow.config.schema import Config
from vidflow.errors import VidflowError
from vidflow.models.encoder import build_encoder
from vidflow.records import Reject
from vidflow.stages.extract import Extractor, ExtractPlan
from vidflow.stages.finish import finish_stage
from vidflow.stages.locate import Address, locate_features, locate_shards, root_of
from vidflow.store.features import CLIPS_TABLE, ClipRow, FeatureFile
from vidflow.store.layout import committed_entry, exclusive
from vidflow.store.rows import read_rows


def main(config: Config) -> None:
    """Make the feature sets that are not there yet."""
    with exclusive(root_of(config)):
        shards = finished_shards(config)
        for name in config.features:
            address = locate_features(config, name, shards)
            if address.manifest is None:
                _extract(config, name, shards, address)


def finished_shards(config: Config) -> Address:
    """Return the address of the shards, which are finished when it is this stage's turn."""
    work = locate_shards(config)
    assert work is not None
    return work.address


def _extract(config: Config, name: str, shards: Address, address: Address) -> None:
    started = time.monotonic()
    manifest = shards.manifest
    assert manifest is not None
    if config.encoder.weights.startswith("random:"):
        log.warning(
            "extract: %s has RANDOM weights (%s), not pre-trained ones", config.encoder.name, config.encoder.weights
        )
    units = []
    for file in manifest["files"]:
        entry = committed_entry(shards.directory, file["file"])
        if entry is None:
            raise VidflowError(
                f"{shards.directory / file['file']}: gone or cut short since it was made; "
                f"delete {shards.directory / 'manifest.json'} and run `vidflow shard` again"
            )
        units.append(ExtractPlan(file=f"{Path(entry.file).stem}.arrow", shard=entry))
    metadata = {
        "fingerprint": address.fingerprint,
        "settings": address.settings,
        "class_names": manifest["class_names"],
        "num_frames": config.video.sampling.num_frames,
        "clip": clip_settings(config),
    }
    build = functools.partial(build_extractor, config, name, shards.directory, address.directory, metadata)
    entries, made = commit_units(
        config, address.directory, build, units, config.resources.extract, name=f"extract {name}"
    )
    rejects = [Reject(**row) for entry in entries for row in entry.rejects]
    finish_stage(
        address,
        stage=f"extract/{name}",
        entries=entries,
        clips=_clip_rows(shards, rejects),
        rejects=rejects,
        metadata=FeatureFile(address.directory / entries[0].file).metadata,
    )
    num_clips = sum(entry.num_clips for entry in made)
    num_bytes = sum(entry.num_bytes for entry in made)
    log.info(
        "extract: %s, %d clips, %.1f MB -> %s (%.1f clips/s); next: vidflow sweep",
        name,
        num_clips,
        num_bytes / 1e6,
        address.directory,
        num_clips / (time.monotonic() - started),
    )


def build_extractor(config: Config, name: str, shards: Path, directory: Path, metadata: dict[str, Any]) -> Extractor:
    """Build the worker on the machine it runs on: encoder, device and threads."""
    resources, features = config.resources.extract, config.features[name]
    torch.set_num_threads(max(1, int(resources.num_cpus)))
    encoder = build_encoder(
        **asdict(config.encoder),
        depths=features.depths,
        normalize_depths=features.normalize,
        device="cuda" if resources.num_gpus else "cpu",
    )
    return Extractor(
        encoder,
        shards=shards,
        directory=directory,
        metadata=metadata,
        frames_per_batch=config.resources.frames_per_batch,
    )


def _clip_rows(shards: Address, rejects: list[Reject]) -> list[ClipRow]:
    left_out = {reject.key for reject in rejects}
    rows: list[ClipRow] = []
    for row in read_rows(shards.directory / CLIPS_TABLE, ClipRow):
        if row.key in left_out:
            continue
        file = f"{Path(row.file).stem}.arrow"
        position = rows[-1].row + 1 if rows and rows[-1].file == file else 0
        rows.append(ClipRow(key=row.key, label=row.label, split=row.split, file=file, row=position))
    return rows


if __name__ == "__main__":
    run_stage("extract")
