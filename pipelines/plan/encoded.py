"""What trials cost in which the encoder runs: multiply-accumulates of a clip, and the time of a step."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from vidflow.config.schema import Adaptation, Config, Trial
from vidflow.config.search import draw_candidates
from vidflow.models.encoder import resolve_depths, shape_of, skeleton
from vidflow.models.encoder.adapted import count_adapted_macs
from vidflow.stages.address import Address
from vidflow.stages.finish import finish_stage
from vidflow.store.features import ClipRow
from vidflow.store.layout import FileEntry
from vidflow.store.shard_clips import ShardClips

# A frozen block needs a forward pass and the gradients of its inputs; adapters add a sixth of a pass to each of three.
# Source: derived for ranks of a quarter of the width, 30 / 12.
_TRAINED_PASSES = 2.5
NUM_CLIPS = 2
"""Clips of a measured step: an encoder takes long for each, and few say how long."""


def describe_encoders(config: Config) -> Iterator[str]:
    """Yield a line for each encoder that runs within trials: its multiply-accumulates, in billions, as papers count.

    Papers call them GFLOPs, and count all clips of a video that are evaluated.
    """
    sampling = config.video.sampling
    num_clips = sampling.num_clips if sampling.mode == "spread" else 1
    trials = [trial for trial in draw_candidates(config)[0] if trial.feed != "features"]
    shape = shape_of(skeleton(config.encoder.name, config.encoder.img_size)) if trials else None
    for feed, name, features in dict.fromkeys((trial.feed, trial.adaptation, trial.features) for trial in trials):
        assert shape is not None
        adaptation = config.adaptations[name] if name is not None else Adaptation(places=[])
        depths = None if feed == "prefix" else config.features[features].depths
        last = resolve_depths(depths, num_blocks=shape.depth)[-1]

        def count(*, adaptation: Adaptation = adaptation, last: int = last, merged: bool) -> float:
            macs = count_adapted_macs(shape, adaptation, num_frames=sampling.num_frames, last=last, merged=merged)
            return macs / 1e9

        below = count(adaptation=Adaptation(places=[]), last=min(adaptation.first_block - 1, last), merged=True)
        trained = count(merged=True) - below
        step = _TRAINED_PASSES * trained + (below if feed == "shards" else 0.0) if name is not None else trained
        yield (
            f"encoder within trials ({feed}{'' if name is None else f', adaptation {name}'}): "
            f"{count(merged=True):.4g} GMACs per clip"
            + (f", {num_clips * count(merged=True):.4g} per video of {num_clips} clips" if num_clips > 1 else "")
            + (f"; {count(merged=False):.4g} before adapters are merged" if adaptation.places else "")
            + f"; about {step:.4g} to train on a clip"
        )


def few_clips(shards: Path, entry: FileEntry, trial: Trial, class_names: Sequence[str]) -> tuple[Trial, ShardClips]:
    """Return clips of a shard as both splits of a short trial, and the trial with batches of all of them."""
    keys = sorted({name.partition(".")[0] for name in entry.details["members"]})[:NUM_CLIPS]
    rows = [
        ClipRow(key=key, label=0, split=split, file=entry.file, row=0) for split in ("train", "val") for key in keys
    ]
    finish_stage(
        Address(directory=shards, settings={}),
        stage="probe",
        entries=[entry],
        clips=rows,
        rejects=[],
        wall_seconds=0.0,
        class_names=list(class_names),
    )
    return replace(trial, batch_size=len(keys)), ShardClips(shards)


__all__ = ["NUM_CLIPS", "describe_encoders", "few_clips"]
