"""Fix ALGM's thresholds on frames of the training split: `vidflow calibrate CONFIG.yaml`."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from pipelines.job import log
from vidflow.config.schema import Config
from vidflow.errors import VidflowError
from vidflow.models.calibration import calibrate_windows
from vidflow.models.encoder import build_encoder
from vidflow.stages.extract import fit_frames
from vidflow.stages.locate import ShardWork, locate_shards
from vidflow.store.features import CLIPS_TABLE, ClipRow
from vidflow.store.layout import committed_entry
from vidflow.store.rows import read_rows
from vidflow.store.shards import read_images
from vidflow.training.batches import spread
from vidflow.video.encode import decompress

NUM_FRAMES = 1024
"""Frames looked at, of clips spread over the training split."""
_STEPS = ("window", "local_block", "global_block")


def main(config: Config) -> None:
    """Print the thresholds of every feature set that ALGM makes, as settings to give or to write into the YAML.

    Raises:
        VidflowError: If there is no such feature set, or no shards to take frames from.
    """
    reducers = {name: features.reducer for name, features in config.features.items()}
    names = [name for name, reducer in reducers.items() if reducer.name == "algm" and reducer.stage != "post"]
    if not names:
        raise VidflowError("no feature set has the reducer `algm` inside the encoder, the only one to calibrate")
    work = locate_shards(config)
    if work is None or work.address.manifest is None:
        raise VidflowError("there are no shards to take frames from; run `vidflow shard` first")
    encoder = build_encoder(
        **asdict(config.encoder), depths=[-1], device="cuda" if config.resources.extract.num_gpus else "cpu"
    )
    clips = [fit_frames(torch.from_numpy(frames), encoder.img_size) for frames in _clips(config, work)]
    frames: UInt8[Tensor, "B H W 3"] = torch.cat(clips)
    for name in names:
        steps: dict[str, Any] = {step: value for step, value in reducers[name].settings.items() if step in _STEPS}
        fixed = calibrate_windows(encoder, frames, **steps, frames_per_batch=config.resources.frames_per_batch)
        for threshold in ("local_threshold", "global_threshold"):
            print(f"features.{name}.reducer.settings.{threshold}={getattr(fixed, threshold):.4f}")
    log.info("calibrate: %d feature sets on %d frames; next: `vidflow extract` with these", len(names), len(frames))


def _clips(config: Config, work: ShardWork) -> Iterator[UInt8[np.ndarray, "T H W 3"]]:
    rows = [row for row in read_rows(work.address.directory / CLIPS_TABLE, ClipRow) if row.split == "train"]
    for place in spread(np.arange(len(rows)), most=-(-NUM_FRAMES // config.video.sampling.num_frames)):
        row = rows[place]
        entry = committed_entry(work.address.directory, row.file)
        if entry is None:
            raise VidflowError(f"{work.address.directory / row.file}: gone or cut short; run `vidflow shard` again")
        images = read_images(work.address.directory / entry.file, entry.details["members"], row.key)
        yield np.stack([decompress(image) for image in images])
