"""Compute the addresses of artifacts: hashes of the settings that change a result and of the stages upstream.

Worker counts, paths and the encoder's batch size are left out. A stage finds its input by recomputing the address.
"""

import dataclasses
import hashlib
import json
from typing import Any

from vidflow.config.encoder import encoder_settings
from vidflow.config.schema import Config, FeatureSet, SplitNames, Tracking, Trial, Trials

STAGE_VERSIONS = {"synth": 1, "shard": 2, "extract": 3, "trial": 2, "report": 2, "evaluate": 1}
"""Increase the number of a stage by hand when a change of its code changes its result."""


def canonical_json(value: Any) -> str:
    """Return the canonical JSON text of a value: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def fingerprint(value: Any) -> str:
    """Return the first 16 hex digits of the SHA-256 of a JSON value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def synth_settings(config: Config) -> dict[str, Any]:
    """Return the settings that decide the rendered videos."""
    return {"version": STAGE_VERSIONS["synth"], **dataclasses.asdict(config.video.synthetic)}


def clip_settings(config: Config) -> dict[str, Any]:
    """Return the settings that decide the frames of a clip, given its video."""
    video, sampling = config.video, dataclasses.asdict(config.video.sampling)
    if video.sampling.mode != "spread":
        sampling.pop("num_clips")
    # Left out for the central square, so that clips from before these were settings keep their addresses.
    framing = {} if video.is_central else {"short_side": video.short_side, "crop": video.crop}
    return {
        "decoder": video.decoder,
        "sampling": sampling,
        "size": video.size,
        "resize_filter": video.resize_filter,
        **framing,
    }


def shard_settings(config: Config, videos_digest: str, decoder_versions: dict[str, str]) -> dict[str, Any]:
    """Return the settings that decide the shards; `videos_digest` covers the contents and labels of all videos."""
    shards = dataclasses.asdict(config.shards)
    shards.pop("max_reject_fraction")
    return {
        "version": STAGE_VERSIONS["shard"],
        "videos": videos_digest,
        "decoders": decoder_versions,
        **clip_settings(config),
        **shards,
    }


def feature_settings(
    config: Config, features: FeatureSet, shards_fingerprint: str, weights_identity: str
) -> dict[str, Any]:
    """Return the settings that decide one feature set, given its shards and the identity of the weights."""
    encoder = encoder_settings(config.encoder)
    encoder["weights"] = weights_identity
    return {
        "version": STAGE_VERSIONS["extract"],
        "shards": shards_fingerprint,
        "encoder": encoder,
        "features": dataclasses.asdict(features),
    }


def reduced_settings(features: FeatureSet, dense_fingerprint: str) -> dict[str, Any]:
    """Return the settings that decide a feature set made from the cached tokens of another one."""
    return {
        "version": STAGE_VERSIONS["extract"],
        "dense": dense_fingerprint,
        "reducer": dataclasses.asdict(features.reducer),
    }


def trial_settings(
    trial: Trial, features_identity: str, objective: str, mode: str, splits: SplitNames
) -> dict[str, Any]:
    """Return the settings that decide one trial; their fingerprint is the trial's key."""
    values = dataclasses.asdict(trial)
    values.pop("features")
    return {
        "version": STAGE_VERSIONS["trial"],
        "features": features_identity,
        "objective": objective,
        "mode": mode,
        **_split_settings(splits),
        **values,
    }


def sweep_settings(trials: Trials) -> dict[str, Any]:
    """Return the settings that decide which trials a sweep has."""
    values = dataclasses.asdict(trials)
    values.pop("splits")
    return {**values, **_split_settings(trials.splits)}


def tracking_settings(tracking: Tracking) -> dict[str, Any]:
    """Return the settings that decide where runs are stored."""
    return {"uri": tracking.uri, "experiment": tracking.experiment}


def _split_settings(splits: SplitNames) -> dict[str, Any]:
    """Return nothing for the usual names, so that trials from before they were settings keep their keys."""
    return {} if splits == SplitNames() else {"splits": dataclasses.asdict(splits)}
