"""Check the weights that trials start from, before anything starts, and copy those of MLflow runs under the root."""

import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vidflow.config.roots import root_path
from vidflow.config.schema import Config
from vidflow.config.search import draw_candidates, key_of
from vidflow.config.tracking_uri import store_uri
from vidflow.errors import VidflowError
from vidflow.stages.trained import TRIALS, read_sweeps
from vidflow.store.initial_weights import RUN_ID, InitialFile, list_initial, read_initial, run_file
from vidflow.store.layout import BEST, exists, fetch, publish

log = logging.getLogger("vidflow")


def find_unfit_weights(config: Config) -> Iterator[str]:
    """Yield what is wrong with the weights that `init_from` names: each that is missing, or that a trial cannot take.

    Weights of runs in MLflow are copied under the root first.
    """
    key = key_of(config.trials, "init_from")
    files: dict[str, InitialFile] = {}
    for source in list_initial(config):
        try:
            _copy_run(config, source)
            files[source] = read_initial(config, source)
        except VidflowError as error:
            yield str(error) if str(error).startswith(f"{key}:") else f"{key}: {error}"
    if files:
        yield from _find_misfits(config, key, files)


def _copy_run(config: Config, source: str) -> None:
    target = run_file(config, source)
    if not RUN_ID.fullmatch(source) or (exists(target) and not _is_damaged(target)):
        return
    with tempfile.TemporaryDirectory() as folder:
        weights = _find_under_root(config, source) or _fetch(config, source, Path(folder))
        with publish(target) as aside:
            aside.write_bytes(weights.read_bytes())
    log.info("%s: the weights of run %s -> %s", key_of(config.trials, "init_from"), source, target)


def _is_damaged(copy: Path) -> bool:
    """Whether the copy of a run's weights has to be made again."""
    from vidflow.training.snapshot import find_damage  # imports torch, which takes seconds

    try:
        return bool(find_damage(copy))
    except OSError:  # what reads it says so
        return False


def _find_under_root(config: Config, run: str) -> Path | None:
    """Return the weights of a run whose trial lies under the root, as the store may be away; None if it does not."""
    root = root_path(config)
    for sweep in read_sweeps(root):
        for key, its_run in sweep.runs.items():
            if its_run == run and exists(weights := root / TRIALS / key / BEST):
                return fetch(weights)
    return None


def _fetch(config: Config, run: str, folder: Path) -> Path:
    from vidflow.tracking import MODEL, fetch_file  # imports MLflow, which takes seconds

    try:
        return fetch_file(store_uri(config), run, f"{MODEL}/artifacts/{BEST}", folder)
    except VidflowError as error:
        raise VidflowError(f"{error}; a trial's folder, or its {BEST}, needs no store") from error


def _find_misfits(config: Config, key: str, files: dict[str, InitialFile]) -> Iterator[str]:
    # Imported here, because it takes seconds.
    import torch

    from vidflow.training.initial import InitialWeights, describe_faults
    from vidflow.training.recipe import build_module, make_recipe

    weights = {}
    for source, file in files.items():
        try:
            weights[source] = InitialWeights(file.path)
            _warn_of_encoder(config, key, source, weights[source].identity.features.get("encoder", {}))
        except VidflowError as error:
            yield f"{key}: {error}"
    embed_dim, faults = _embed_dim(config), dict[str, list[str]]()
    for trial in draw_candidates(config)[0]:
        if (start := weights.get(trial.init_from or "")) is None:
            continue
        is_single = trial.feed == "prefix" or config.encoder.family != "image"
        recipe = make_recipe(
            trial,
            embed_dim=embed_dim,
            num_depths=1 if is_single else len(config.features[trial.features].depths),
            num_classes=2,  # decides nothing in front of the readout
            image_size=config.video.size,
        )
        try:
            with torch.device("meta"):
                module = build_module(recipe)
        except ValueError:  # another check says so
            continue
        faults.setdefault(str(trial.init_from), []).extend(start.faults(module, recipe))
    for source, found in faults.items():
        if problem := describe_faults(list(dict.fromkeys(found))):
            yield f"{key}: got {source!r}: {problem}"


def _warn_of_encoder(config: Config, key: str, source: str, trained_on: Mapping[str, Any]) -> None:
    """Say that a core comes from tokens of another image encoder: only the user knows whether that makes sense."""
    name = trained_on.get("name")
    if config.encoder.family == "image" and name not in (None, config.encoder.name):
        log.warning(
            "%s: %s was trained on tokens of %s, and encoder.name is %s", key, source, name, config.encoder.name
        )


def _embed_dim(config: Config) -> int:
    if config.encoder.family == "image":
        from vidflow.models.encoder import shape_of, skeleton

        return shape_of(skeleton(config.encoder.name)).embed_dim
    from vidflow.models.encoder.configured import video_recipe
    from vidflow.models.encoder.video.loaded import outline_of

    return outline_of(video_recipe(config.encoder))[1].embed_dim


__all__ = ["find_unfit_weights"]
