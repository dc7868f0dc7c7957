"""One trial: build the module and its data from the configuration, train the module, and load the trained module."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vidflow.config.schema import SplitNames, Trial
from vidflow.config.tasks import Objective, TaskName, facts_of
from vidflow.errors import VidflowError
from vidflow.models.encoder import shape_of, skeleton
from vidflow.models.tasks import Task, spec_of
from vidflow.records import EpochResult
from vidflow.spread import spread
from vidflow.store.features import FeatureReader
from vidflow.store.initial_weights import InitialFile
from vidflow.store.shard_clips import ShardClips
from vidflow.training.batches import Splits, core_tokens
from vidflow.training.encoded_task import EncodedTask
from vidflow.training.encoding import Encoding, build_encoded, describe_features, part_values
from vidflow.training.feeds import Clips, Feed, ShardFeed, StoredFeed
from vidflow.training.fit import fit
from vidflow.training.initial import InitialWeights
from vidflow.training.labels import check_labelled, take_share
from vidflow.training.learner import seeded
from vidflow.training.optim import Optimisation
from vidflow.training.ranks import Ranks
from vidflow.training.recipe import ModuleRecipe, build_module, depth_size, make_recipe, module_recipe
from vidflow.training.snapshot import TrialIdentity, load_result, write_failure, write_result
from vidflow.training.votes import videos_of
from vidflow.video.augmented_targets import label_pairs

# Clips whose times give the frame rate of a feature set; more clips do not change the median.
_RATE_CLIPS = 256
# Enough for a mean and a deviation per channel to three digits.
_SCALE_CLIPS = 256


def run_trial(
    trial: Trial,
    clips: Clips,
    *,
    directory: Path,
    key: str,
    objective: Objective,
    names: SplitNames | None = None,
    device: torch.device | str | None = None,
    encoding: Encoding | None = None,
    initial: InitialFile | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
) -> Iterator[EpochResult]:
    """Train or resume a trial, and yield the result of every epoch that was not done before.

    See `vidflow.training.fit.fit`. Call `write_result` or `write_failure` to close a trial that ends early.

    Args:
        trial: Settings of the trial.
        clips: Its feature set or, with `feed: shards`, its shards.
        directory: Its folder.
        key: Fingerprint of everything that decides it.
        objective: Metric by which the best epoch is chosen.
        names: Which splits it uses; None: the usual ones.
        device: Where to train; None is the GPU if there is one.
        encoding: How the encoder runs in the trial; None if it does not.
        initial: What `init_from` names.
        ranks: The processes that train it together; each calls this function, and yields the same results.

    Raises:
        VidflowError: If the clips do not fit the task, the module cannot be built, or the loss is not finite.
    """
    assert (initial is None) == (trial.init_from is None)
    names = names or SplitNames()
    splits = Splits(
        train=_draw(trial, clips, _split_indices(clips, names.train, trial.task)),
        val=_split_indices(clips, names.val, trial.task),
        test=_split_indices(clips, names.test, trial.task) if names.test else None,
    )
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        built = (
            _build_stored(trial, clips, splits, target)
            if encoding is None
            else build_encoded_trial(trial, clips, encoding, target)
        )
    except ValueError as error:
        raise VidflowError(f"trial {key}: {error}") from error
    if initial is not None:
        task = built.module.task if isinstance(built.module, EncodedTask) else built.module
        InitialWeights(initial.path).load_into(task, built.recipe)
    identity = TrialIdentity(
        key=key,
        settings=dataclasses.asdict(trial),
        recipe=dataclasses.asdict(built.recipe),
        num_parameters=sum(each.numel() for each in built.module.parameters() if each.requires_grad),
        features={**built.features, "fps": _frame_rate(clips, splits)},
        encoder=built.encoder,
        initial={} if initial is None else {"trial": initial.trial, "sha256": initial.sha256},
    )
    yield from fit(
        built.module,
        spec_of(trial.task),
        built.feed,
        splits,
        identity=identity,
        directory=directory,
        optimisation=Optimisation.of(trial),
        objective=objective,
        device=target,
        clips_per_pass=None if encoding is None else encoding.clips_per_pass,
        videos=videos_of(clips, splits.measured) if trial.score_by == "video" else None,
        ranks=ranks,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltTrial:
    """A trial's module and feed, and what its files say about them."""

    module: Task | EncodedTask
    feed: Feed
    recipe: ModuleRecipe
    features: dict[str, Any]
    encoder: dict[str, Any]


def _build_stored(trial: Trial, reader: Clips, splits: Splits, device: torch.device) -> BuiltTrial:
    """Build the module on stored features."""
    assert isinstance(reader, FeatureReader)
    recipe = module_recipe(trial, reader)
    with seeded(trial.seed, 0, torch.device("cpu")):
        task = build_module(recipe)
    if task.token_scale is not None:
        task.token_scale.measure(_train_tokens(reader, splits, task))
    feed = stored_feed(trial, reader, task, device)
    return BuiltTrial(module=task, feed=feed, recipe=recipe, features=reader.metadata, encoder={})


def build_encoded_trial(trial: Trial, clips: Clips, encoding: Encoding, device: torch.device) -> BuiltTrial:
    """Build the module that includes an encoder, with its feed of a stored stream or of frames.

    Raises:
        VidflowError: The encoder cannot be built, or the adaptation does not fit it.
        ValueError: The core or the task does not fit the encoder.
    """
    part, class_names = encoding.part, clips.metadata["class_names"]
    source = {"fingerprint" if isinstance(clips, FeatureReader) else "shards": clips.directory.name}
    if isinstance(clips, FeatureReader):
        part = dataclasses.replace(part, first_block=clips.metadata["depths"][0] + 1)
    recipe = make_recipe(
        trial,
        embed_dim=shape_of(skeleton(part.settings.name)).embed_dim,
        num_depths=len(part.depths),
        num_classes=len(class_names),
        image_size=depth_size(clips) if "depth" in facts_of(trial.task).annotations else 0,
    )
    with seeded(trial.seed, 0, torch.device("cpu")):
        module = build_encoded(part, build_module(recipe), device=device, checkpointing=encoding.checkpointing)
    return BuiltTrial(
        module=module,
        feed=stored_feed(trial, clips, module.task, device)
        if isinstance(clips, FeatureReader)
        else _shard_feed(trial, clips, encoding, module, device),
        recipe=recipe,
        features={**describe_features(module.frozen, encoding, class_names), **source},
        encoder=part_values(part, module.frozen),
    )


def stored_feed(trial: Trial, reader: FeatureReader, task: Task, device: torch.device) -> StoredFeed:
    """Return what makes a trial's batches from stored tokens."""
    return StoredFeed(
        clips=reader,
        device=device,
        num_depths=task.num_depths,
        arrays=facts_of(trial.task).annotations,
        unmerged=task.unmerges,
        seed=trial.seed,
        hides_frames=facts_of(trial.task).hides_frames,
    )


def _shard_feed(
    trial: Trial, clips: ShardClips, encoding: Encoding, module: EncodedTask, device: torch.device
) -> ShardFeed:
    pairs = encoding.augmentation.flip_labels if encoding.augmentation is not None else []
    return ShardFeed(
        clips=clips,
        device=device,
        arrays=facts_of(trial.task).annotations,
        img_size=module.frozen.img_size,
        augmentation=encoding.augmentation,
        label_pairs=label_pairs(pairs, clips.metadata["class_names"]),
        seed=trial.seed,
        num_threads=encoding.num_threads,
    )


def _train_tokens(reader: FeatureReader, splits: Splits, task: Task) -> Iterator[Float[Tensor, "T K N D"]]:
    """Yield the tokens of some clips of the training split, evenly spread over it."""
    for index in splits.train[spread(len(splits.train), _SCALE_CLIPS)]:
        tokens = core_tokens(reader[int(index)], task.num_depths, unmerged=task.unmerges)
        yield torch.from_numpy(tokens.astype(np.float32))


def _split_indices(reader: Clips, split: str, task: TaskName) -> Int64[np.ndarray, " clips"]:
    """Return the clips of a split, as positions in the reader."""
    indices = np.flatnonzero(np.asarray(reader.splits) == split)
    if not len(indices):
        found = ", ".join(sorted(set(reader.splits))) or "none"
        raise VidflowError(
            f"{reader.directory}: no clip of split `{split}`; splits found: {found}; name one of them in trials.splits"
        )
    check_labelled(reader, indices, task)
    return indices


def _draw(trial: Trial, clips: Clips, indices: Int64[np.ndarray, " clips"]) -> Int64[np.ndarray, " drawn"]:
    """Return the training clips that a trial learns from: all, or those of a share of their videos."""
    if trial.train_fraction == 1.0:
        return indices
    videos = videos_of(clips, indices, instead="trials.trial.train_fraction=1")
    counts = Counter(videos[index] for index in indices)
    # The only clip of a video is drawn by its own key, as it was when clips were drawn.
    owners = [key if counts[video] == 1 else video for key, video in zip(clips.keys, videos, strict=True)]
    return take_share(indices, owners, clips.labels, share=trial.train_fraction, seed=trial.seed)


def _frame_rate(clips: Clips, splits: Splits) -> float | None:
    """Return the median frame rate of the training clips; None if every clip has a single frame time."""
    times = [clips[int(index)].pts_seconds for index in splits.train[:_RATE_CLIPS]]
    rates = [(len(clip) - 1) / (clip[-1] - clip[0]) for clip in times if clip[-1] > clip[0]]
    return float(np.median(rates)) if rates else None


__all__ = [
    "BuiltTrial",
    "build_encoded_trial",
    "load_result",
    "run_trial",
    "stored_feed",
    "write_failure",
    "write_result",
]
