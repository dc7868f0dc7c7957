"""Compute ALGM's thresholds from frames of the training split: `vidflow calibrate CONFIG.yaml`."""

from typing import Any

import torch

from pipelines.placement import place_workers, this_machine
from pipelines.ray_pool import log
from vidflow.config.encoder import image_settings
from vidflow.errors import VidflowError
from vidflow.models.encoder import build_encoder
from vidflow.models.encoder.calibration import calibrate_windows
from vidflow.models.encoder.fitting import fit_frames
from vidflow.spread import spread
from vidflow.stages.clip_frames import ClipFrames
from vidflow.stages.experiment import Experiment

NUM_FRAMES = 1024
"""Number of frames to use, from clips spread over the training split."""
_STEPS = ("window", "local_block", "global_block")


def main(experiment: Experiment) -> None:
    """Print the thresholds of every feature set that uses ALGM, as settings for the command line or the YAML.

    Raises:
        VidflowError: If there is no such feature set, or no shards to take frames from.
    """
    config = experiment.config
    if config.encoder.family != "image":
        raise VidflowError(f"encoder.family is {config.encoder.family!r}; ALGM acts in image encoders only")
    reducers = {name: features.reducer for name, features in config.features.items()}
    names = [name for name, reducer in reducers.items() if reducer.name == "algm" and reducer.place != "post"]
    if not names:
        raise VidflowError("no feature set has the reducer `algm` inside the encoder, the only one to calibrate")
    work = experiment.shards
    if work is None or experiment.manifest(work.address) is None:
        raise VidflowError(f"there are no shards to take frames from; run `{experiment.command('shard')}` first")
    device = place_workers(config.resources, "extract", this_machine()).device
    encoder = build_encoder(**image_settings(config.encoder), depths=[-1], device=device)
    frames_of = ClipFrames(work)
    train = frames_of.keys(config.trials.splits.train)
    chosen = spread(len(train), -(-NUM_FRAMES // config.video.sampling.num_frames))
    frames = torch.cat([fit_frames(torch.from_numpy(frames_of(train[i])), encoder.img_size) for i in chosen])
    for name in names:
        steps: dict[str, Any] = {step: value for step, value in reducers[name].settings.items() if step in _STEPS}
        fixed = calibrate_windows(encoder, frames, **steps, frames_per_batch=config.resources.frames_per_batch)
        for threshold in ("local_threshold", "global_threshold"):
            print(f"features.{name}.reducer.settings.{threshold}={getattr(fixed, threshold):.4f}")
    log.info(
        "calibrate: %d feature sets on %d frames; next: `%s` and these",
        len(names),
        len(frames),
        experiment.command("extract"),
    )
