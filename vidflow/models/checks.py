"""What an encoder's settings must fulfil, checked in a second and without weights, before anything starts."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from vidflow.errors import ConfigError, VidflowError
from vidflow.models.encoder import check_img_size, check_name, outline, resolve_depths
from vidflow.models.reduction.build import build_reducer


def check_encoder(
    *, name: str, img_size: int, depths: Sequence[Sequence[int]], reducers: Sequence[tuple[str, Mapping[str, Any]]]
) -> None:
    """Check name, input size and every feature set's depths and reducer against the architecture.

    Args:
        name: timm's name of the encoder.
        img_size: Side of its input in pixels.
        depths: Blocks each feature set taps.
        reducers: Name and settings of each feature set's reducer.

    Raises:
        ConfigError: With every problem found.
    """
    try:
        check_name(name)
        patch_size, num_blocks = outline(name)
    except VidflowError as error:
        raise ConfigError(str(error)) from error
    checks: list[Callable[[], object]] = [partial(check_img_size, img_size, patch_size=patch_size, name=name)]
    checks += [partial(resolve_depths, wanted, num_blocks=num_blocks) for wanted in depths]
    checks += [partial(build_reducer, reducer, **settings) for reducer, settings in reducers]
    problems = []
    for check in checks:
        try:
            check()
        except VidflowError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
