"""Compute the addresses of artifacts: hashes of the settings that change a result and of the stages upstream.

Worker counts, paths and the encoder's batch size are left out. A stage finds its input by recomputing the address.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from vidflow.config.encoder import encoder_settings
from vidflow.config.schema import Config, FeatureSet, SplitNames, Tracking, Trial

STAGE_VERSIONS = {"synth": 1, "shard": 2, "extract": 3, "trial": 2, "report": 2, "evaluate": 1}
"""Increase the number of a stage by hand when a change of its code changes its result."""


_NEWER = (
    *("feed", "adaptation", "augmentation", "encoder_rate", "readout", "score_by", "label_smoothing"),
    *("train_fraction", "init_from", "mask_ratio", "mask_choice", "mask_loss"),
    *("vtm_groups", "vtm_factor", "vtm_share", "token_adapter"),
)


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
        "features": _feature_values(config, features),
    }


def reduced_settings(features: FeatureSet, dense_fingerprint: str) -> dict[str, Any]:
    """Return the settings that decide a feature set made from the cached tokens of another one."""
    return {
        "version": STAGE_VERSIONS["extract"],
        "dense": dense_fingerprint,
        "reducer": dataclasses.asdict(features.reducer),
    }


def _feature_values(config: Config, features: FeatureSet) -> dict[str, Any]:
    """Return a feature set's settings; those of views only if it has several."""
    values = dataclasses.asdict(features)
    name = values.pop("augmentation")
    if values.pop("views") == 1:
        return values
    views = {"augmentation": section_values(config.augmentations, name), "split": config.trials.splits.train}
    return {**values, "views": features.views, **views}


def trial_settings(
    config: Config, trial: Trial, features_identity: str, objective: str, mode: str, *, initial: str | None = None
) -> dict[str, Any]:
    """Return the settings that decide one trial; their fingerprint is the trial's key.

    Args:
        config: The experiment.
        trial: The trial.
        features_identity: Identity of its feature set; it covers shards and encoder, so it stands for them too if the
            trial reads frames.
        objective: What ranks its epochs.
        mode: Whether more of it is better.
        initial: Digest of the weights that `init_from` names; None without any.
    """
    values = _without_defaults(dataclasses.asdict(trial))
    values.pop("features")
    # By content, because names may change.
    for name, sections in (("adaptation", config.adaptations), ("augmentation", config.augmentations)):
        if name in values:
            values[name] = section_values(sections, values[name])
    if initial is not None:
        values["init_from"] = initial
    # Once clips were drawn, which is the same if each video has one.
    drawn = {"drawn": "videos"} if trial.train_fraction < 1 and config.video.sampling.has_several else {}
    return {
        "version": STAGE_VERSIONS["trial"],
        "features": features_identity,
        "objective": objective,
        "mode": mode,
        **_split_settings(config.trials.splits),
        **drawn,
        **values,
    }


def sweep_settings(config: Config, initial: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings that decide which trials a sweep has.

    Args:
        config: The experiment.
        initial: What trials name as `init_from` -> digest of these weights.
    """
    trials = config.trials
    values = dataclasses.asdict(trials)
    values.pop("splits")
    values["trial"] = _without_defaults(values["trial"])
    for named in (values["trial"], values["axes"]):
        if "init_from" in named:
            named["init_from"] = _by_content(named["init_from"], initial)
    parts: dict[str, Mapping[str, Any]] = {"adaptations": config.adaptations, "augmentations": config.augmentations}
    sections = {key: {name: section_values(part, name) for name in part} for key, part in parts.items() if part}
    return {**values, **_split_settings(trials.splits), **sections}


def _by_content(named: Any, initial: Mapping[str, str]) -> Any:
    """Replace what `init_from` names, or a list of it, by digests."""
    return [initial.get(each, each) for each in named] if isinstance(named, list) else initial.get(named, named)


def section_values(sections: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    """Return the settings of a named section; empty without a name."""
    return {} if name is None else dataclasses.asdict(sections[name])


def _without_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Leave out the newer settings of a trial at their defaults, so that older trials keep their keys."""
    plain = Trial()
    return {name: value for name, value in values.items() if name not in _NEWER or value != getattr(plain, name)}


def tracking_settings(tracking: Tracking) -> dict[str, Any]:
    """Return the settings that decide where runs are stored."""
    return {"uri": tracking.uri, "experiment": tracking.experiment}


def _split_settings(splits: SplitNames) -> dict[str, Any]:
    """Return nothing for the usual names, so that trials from before they were settings keep their keys."""
    return {} if splits == SplitNames() else {"splits": dataclasses.asdict(splits)}
