"""What a video transformer is built from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vidflow.models.encoder.video.families import Family, Fps

AttentionKind = Literal["fused", "eager"]
"""How attention is computed.

Choices:
    fused: With the fused kernel, which never holds the table of all pairs of tokens.
    eager: With that table, as in the published timings.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoRecipe:
    """The settings of a video transformer.

    Attributes:
        family: The family of the model.
        weights: An id on the Hugging Face hub, a folder with `config.json` and `model.safetensors`, a file of a state
            dict, or `random:SEED`.
        size: Name of the size, for a file or random weights; None is the family's usual one.
        settings: Settings of the library's configuration that differ, by the library's names.
        attention: Fused attention or not.
        fps: Frames per second that the weights were trained on, or `uniform` for the middles of equal segments of the
            video; None is the published model's or the family's.
    """

    family: Family
    weights: str
    size: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    attention: AttentionKind = "fused"
    fps: Fps | None = None


__all__ = ["AttentionKind", "VideoRecipe"]
