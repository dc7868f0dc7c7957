"""Checks of trials in which the encoder runs, of augmentations and of views; every problem begins with its key."""

from collections.abc import Iterator, Mapping

from vidflow.config.names import nearest_hint
from vidflow.config.schema import Augmentation, Config, Trial
from vidflow.config.search import draw_candidates, key_of
from vidflow.config.tasks import TaskName

_MEANS_OVER_CLIPS: tuple[TaskName, ...] = ("classification", "masked_tokens")
"""Tasks whose loss over a batch is the mean of those over its clips."""


def encoding_problems(config: Config) -> list[str]:
    """Return what is wrong with feeds, adaptations, augmentations and views."""
    problems = [*_range_problems(config), *_view_problems(config), *_share_problems(config)]
    for trial in draw_candidates(config)[0]:
        if trial.features in config.features:
            problems += [*_name_problems(config, trial), *_feed_problems(config, trial), *_part_problems(config, trial)]
            problems += _task_problems(config, trial)
    return list(dict.fromkeys(problems))


def _name_problems(config: Config, trial: Trial) -> Iterator[str]:
    sections: Mapping[str, tuple[str | None, Mapping[str, object]]] = {
        "adaptation": (trial.adaptation, config.adaptations),
        "augmentation": (trial.augmentation, config.augmentations),
    }
    for field, (name, known) in sections.items():
        if name is not None and name not in known:
            yield f"{key_of(config.trials, field)}: got {name!r}, wanted a name in `{field}s`; {_hint(name, known)}"


def _feed_problems(config: Config, trial: Trial) -> Iterator[str]:
    def key(field: str) -> str:
        return key_of(config.trials, field)

    features, feed = config.features[trial.features], trial.feed
    if feed == "features":
        for field, idle in (("adaptation", None), ("augmentation", None), ("encoder_rate", 1.0)):
            if (value := getattr(trial, field)) != idle:
                yield (
                    f"{key(field)}: got {value!r} with feed `features`, in which the encoder does not run; set "
                    f"{key('feed')} to {'shards' if field == 'augmentation' else 'prefix or shards'}"
                )
        return
    if config.encoder.family != "image":
        yield (
            f"{key('feed')}: got {feed!r}, but encoder.family is {config.encoder.family!r}; only image encoders can run"
        )
    if trial.standardize:
        yield f"{key('standardize')}: got true with feed `{feed}`, whose tokens change as the encoder learns; set false"
    if features.reducer.name != "none":
        yield (
            f"features.{trial.features}.reducer.name: got {features.reducer.name!r}, but a trial with feed `{feed}` "
            "reads it; wanted `none`"
        )
    if trial.adaptation is None and trial.encoder_rate != 1.0:
        yield (
            f"{key('encoder_rate')}: got {trial.encoder_rate}, but nothing of the encoder is trained; set "
            f"{key('adaptation')}"
        )
    if feed == "prefix":
        yield from _prefix_problems(config, trial)


def _prefix_problems(config: Config, trial: Trial) -> Iterator[str]:
    name, features = trial.features, config.features[trial.features]
    if trial.adaptation is None:
        yield (
            f"{key_of(config.trials, 'adaptation')}: got none with feed `prefix`; wanted a name in `adaptations`, as "
            "blocks that nothing is trained in can be stored too"
        )
    if len(features.depths) != 1:
        yield f"features.{name}.depths: got {features.depths}, wanted one block, as a trial with feed `prefix` reads it"
    if features.normalize:
        yield (
            f"features.{name}.normalize: got true, wanted false, as a trial with feed `prefix` reads it: the next "
            "block takes its input before any final norm"
        )
    if trial.augmentation is not None:
        yield (
            f"{key_of(config.trials, 'augmentation')}: got {trial.augmentation!r} with feed `prefix`, which has no "
            f"frames; use feed `shards`, or store views: features.{name}.views and features.{name}.augmentation"
        )


def _part_problems(config: Config, trial: Trial) -> Iterator[str]:
    """Yield why gradients of parts of a batch do not sum up to that of the batch."""
    if trial.task not in _MEANS_OVER_CLIPS:
        reason = f"the loss of {trial.task} is no mean over clips"
    elif trial.feed != "prefix" and trial.mix_depths and len(config.features[trial.features].depths) > 1:
        reason = "mix_depths has a batch norm over a batch"
    else:
        return
    per_pass = config.resources.clips_per_pass
    if per_pass is not None and trial.feed != "features" and per_pass < trial.batch_size:
        yield (
            f"resources.clips_per_pass: got {per_pass}, but {reason}; leave it out, or set it to "
            f"{key_of(config.trials, 'batch_size')} = {trial.batch_size} at least"
        )
    if (number := config.resources.trials.workers_per_trial) > 1:
        yield f"resources.trials.workers_per_trial: got {number}, but {reason}; leave it out"


def _share_problems(config: Config) -> Iterator[str]:
    own = config.resources.trials
    is_shared = own.num_gpus != "auto" and 0 < own.num_gpus < 1
    if own.workers_per_trial > 1 and is_shared and config.resources.device != "cpu":
        yield (
            f"resources.trials.num_gpus: got {own.num_gpus}, but the {own.workers_per_trial} processes of a trial need "
            "a GPU each; set 1 or auto"
        )


def _task_problems(config: Config, trial: Trial) -> Iterator[str]:
    if trial.score_by == "video" and trial.task != "classification":
        yield (
            f"{key_of(config.trials, 'score_by')}: got video for the task {trial.task}; only classes of several clips "
            "have a mean, set clip"
        )
    if trial.task == "masked_tokens" and trial.feed != "features":
        yield (
            f"{key_of(config.trials, 'feed')}: got {trial.feed} for the task masked_tokens, whose targets are stored "
            "tokens; set features"
        )
    if trial.score_by == "clip" and trial.task == "classification" and config.video.crop == "three":
        yield (
            f"{key_of(config.trials, 'score_by')}: got clip with video.crop `three`, which would count each of the "
            "three squares of a clip by itself; set video"
        )
    if trial.label_smoothing and trial.task != "classification":
        yield (
            f"{key_of(config.trials, 'label_smoothing')}: got {trial.label_smoothing} for the task {trial.task}, which "
            "has no labels; set 0"
        )
    adaptation = config.adaptations.get(trial.adaptation or "")
    if adaptation is not None and adaptation.interpolate_after and trial.task != "classification":
        yield (
            f"adaptations.{trial.adaptation}.interpolate_after: got {adaptation.interpolate_after} for the task "
            f"{trial.task}, which has ground truth for every frame; only classification can do with fewer frames"
        )
    features = config.features[trial.features]
    names = {trial.augmentation, features.augmentation if features.views > 1 and trial.feed != "shards" else None}
    for name in sorted(each for each in names if each is not None and each in config.augmentations):
        yield from _augmentation_problems(config, name, config.augmentations[name], trial.task)


def _augmentation_problems(config: Config, name: str, augmentation: Augmentation, task: TaskName) -> Iterator[str]:
    key = f"augmentations.{name}"
    if task != "classification" and (layers := augmentation.randaugment_layers):
        yield f"{key}.randaugment_layers: got {layers} for the task {task}, whose ground truth it cannot move; set 0"
    if task == "camera_pose" and augmentation.crop_area is not None:
        yield (
            f"{key}.crop_area: got {augmentation.crop_area} for the task camera_pose, but a crop looks like another "
            "camera; set null"
        )
    is_blind = augmentation.flip and not augmentation.flip_labels
    if task == "classification" and is_blind and config.video.format == "ssv2":
        yield (
            f"{key}.flip: got {augmentation.flip}, but classes of `ssv2` name directions; give the pairs that a "
            f"mirrored clip exchanges in {key}.flip_labels, or set 0"
        )


def _range_problems(config: Config) -> Iterator[str]:
    for name, each in config.augmentations.items():
        for field, pair in (("crop_area", each.crop_area), ("crop_aspect", each.crop_aspect)):
            if pair is not None and pair[0] > pair[1]:
                yield f"augmentations.{name}.{field}: got {list(pair)}, wanted the smaller number first"


def _view_problems(config: Config) -> Iterator[str]:
    for name, features in config.features.items():
        key = f"features.{name}.augmentation"
        if features.views > 1 and features.augmentation is None:
            yield f"{key}: got none for {features.views} views, wanted a name in `augmentations`"
        elif features.views == 1 and features.augmentation is not None:
            yield f"{key}: got {features.augmentation!r}, but the only view is the plain one; set features.{name}.views"
        elif features.augmentation is not None and features.augmentation not in config.augmentations:
            hint = _hint(features.augmentation, config.augmentations)
            yield f"{key}: got {features.augmentation!r}, wanted a name in `augmentations`; {hint}"


def _hint(name: str, known: Mapping[str, object]) -> str:
    return nearest_hint(name, list(known)) if known else "there is none yet"


__all__ = ["encoding_problems"]
