"""Check the settings of a video transformer before anything starts; no weights are read."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from vidflow.config.schema import FeatureSet, Video
from vidflow.config.tasks import TaskName, facts_of
from vidflow.errors import VidflowError
from vidflow.models.encoder.architecture import resolve_depths
from vidflow.models.encoder.video.build import resolve_reducer
from vidflow.models.encoder.video.cost import ClipShape
from vidflow.models.encoder.video.geometry import ClipGeometry
from vidflow.models.encoder.video.loaded import outline_of
from vidflow.models.encoder.video.recipe import VideoRecipe
from vidflow.models.encoder.video.windows import count_windows
from vidflow.models.reduction.build import PostReducer, build_reducer
from vidflow.models.reduction.macs import VitShape


def video_problems(
    recipe: VideoRecipe, video: Video, features: Mapping[str, FeatureSet], tasks: Iterable[TaskName]
) -> list[str]:
    """Return the problems of clips, feature sets and tasks with the model of a recipe.

    Args:
        recipe: The video transformer.
        video: The clips.
        features: The feature sets by name.
        tasks: The tasks of the trials.
    """
    try:
        geometry, shape = outline_of(recipe)
    except VidflowError as error:
        return [str(error)]
    checks: list[Callable[[], object]] = [
        partial(count_windows, video.sampling.num_frames, geometry.num_frames, name=recipe.family),
        partial(_check_size, video.size, geometry, recipe.family),
        *(partial(_check_task, task, geometry, recipe.family) for task in tasks),
    ]
    checks += [partial(_check_features, name, each, shape, recipe) for name, each in features.items()]
    problems = []
    for check in checks:
        try:
            check()
        except VidflowError as error:
            problems.append(str(error))
    return problems


def _check_size(size: int, geometry: ClipGeometry, name: str) -> None:
    if size < geometry.img_size:
        raise VidflowError(
            f"video.size is {size}, but {name} sees frames of {geometry.img_size} pixels, and frames are never "
            f"enlarged; wanted at least {geometry.img_size}"
        )


def _check_task(task: TaskName, geometry: ClipGeometry, name: str) -> None:
    if geometry.tubelet > 1 and facts_of(task).annotations:
        raise VidflowError(
            f"trials: task {task!r} has ground truth for every frame, but {name} gives one output frame for "
            f"{geometry.tubelet} frames; take an image encoder, or the task classification"
        )


def _check_features(name: str, features: FeatureSet, shape: ClipShape, recipe: VideoRecipe) -> None:
    if resolve_depths(features.depths, num_blocks=shape.depth) != [shape.depth - 1] or not features.normalize:
        raise VidflowError(
            f"features.{name}: got depths {features.depths} and normalize {features.normalize}; {recipe.family} gives "
            "the output of its last block, with its own norm if it has one: `depths: [-1]`, `normalize: true`"
        )
    setting = features.reducer
    reducer = build_reducer(setting.name, place=setting.place, **setting.settings)
    if isinstance(reducer, PostReducer):
        reducer.check(_frame_shape(shape), num_frames=shape.grid[0])
    elif reducer is not None:
        resolve_reducer(reducer, recipe.family, shape)


def _frame_shape(shape: ClipShape) -> VitShape:
    """Return an output frame as an image of its own, as reducers of cached tokens see it."""
    return shape.group("frame")


__all__ = ["video_problems"]
