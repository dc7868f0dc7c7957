"""Define the rendered classes and their paths. Classes come in pairs that differ only in the direction of time.

Axes: F frames; 3 camera axes x right, y down, z forward, in metres.
"""

from typing import Literal, assert_never, get_args

import numpy as np
from jaxtyping import Float64

ForwardName = Literal["move_left", "move_up", "grow", "clockwise", "enter"]
BackwardName = Literal["move_right", "move_down", "shrink", "counterclockwise", "leave"]
ClassName = Literal[ForwardName, BackwardName]

_PAIRS: tuple[tuple[ForwardName, BackwardName], ...] = tuple(
    zip(get_args(ForwardName), get_args(BackwardName), strict=True)
)
_FORWARD: dict[ClassName, ForwardName] = {label: forward for forward, back in _PAIRS for label in (forward, back)}

CLASS_NAMES: tuple[ClassName, ...] = tuple(label for pair in _PAIRS for label in pair)
"""All classes. The class after each even entry is that entry played backwards."""

HALF_VIEW = 0.55
"""Tangent of half the field of view: at depth z the frame spans `+-HALF_VIEW * z` metres."""


def forward_of(label: ClassName) -> ForwardName:
    """Return the class of the pair of `label` whose path is drawn; the other class is that path backwards.

    Raises:
        ValueError: If `label` is not one of `CLASS_NAMES`.
    """
    if label not in _FORWARD:
        raise ValueError(f"label={label!r} is not a rendered class; choose one of {', '.join(CLASS_NAMES)}")
    return _FORWARD[label]


def reverse_of(label: ClassName) -> ClassName:
    """Return the class that `label` becomes when its frames are played backwards.

    Raises:
        ValueError: If `label` is not one of `CLASS_NAMES`.
    """
    forward = forward_of(label)
    return dict(_PAIRS)[forward] if label == forward else forward


def draw_target_path(
    label: ForwardName, rng: np.random.Generator, *, time: Float64[np.ndarray, " F"]
) -> Float64[np.ndarray, "F 3"]:
    """Draw the path of the target's centre in the coordinates of the smoothly moving camera.

    The speed along the path is random but symmetric about the middle of the clip, so it does not
    reveal the direction of time.

    Args:
        label: The class.
        rng: Source of the path's parameters.
        time: From -1 (first frame) to 1 (last frame).

    Returns:
        Positions in metres. The target is in view, except on part of the path of `enter`.
    """
    progress = time + rng.uniform(-0.6, 0.6) * np.sin(np.pi * time) / np.pi
    depth = np.full_like(time, rng.uniform(2.6, 3.4))
    reach, offset = rng.uniform(0.55, 0.75), rng.uniform(-0.35, 0.35)
    match label:
        case "move_left":
            x, y = -reach * progress, np.full_like(time, offset)
        case "move_up":
            x, y = np.full_like(time, offset), -reach * progress
        case "grow":
            x, y = np.full_like(time, offset), np.full_like(time, rng.uniform(-0.3, 0.3))
            # Even steps of log depth are even steps of log size.
            depth = np.exp(np.interp(progress, [-1, 1], np.log([rng.uniform(4.8, 5.5), rng.uniform(1.9, 2.2)])))
        case "clockwise":
            angle = rng.uniform(0, 2 * np.pi) + rng.uniform(0.85, 1.15) * np.pi * progress
            radius = rng.uniform(0.45, 0.6)
            x, y = radius * np.cos(angle), radius * np.sin(angle)
        case "enter":
            outside, inside = rng.uniform(1.45, 1.6), rng.uniform(0.0, 0.25)
            along = np.interp(progress, [-1, 1], [outside, inside])
            match rng.integers(3):
                case 0:
                    x, y = -along, np.full_like(time, offset)
                case 1:
                    x, y = along, np.full_like(time, offset)
                case _:  # from above; from below it would come out of the ground
                    x, y = np.full_like(time, offset), -along
        case _:
            assert_never(label)
    return np.stack([x * HALF_VIEW * depth, y * HALF_VIEW * depth, depth], axis=-1)
