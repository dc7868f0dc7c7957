"""Build an encoder that is trained in a few places."""

from collections.abc import Sequence

from vidflow.config.encoder import image_settings
from vidflow.config.schema import Adaptation, Encoder
from vidflow.errors import VidflowError
from vidflow.models.encoder.adapted.checks import check_adaptation
from vidflow.models.encoder.adapted.encoder import AdaptedEncoder
from vidflow.models.encoder.build import build_encoder


def build_adapted(
    settings: Encoder,
    adaptation: Adaptation,
    *,
    num_frames: int,
    depths: Sequence[int] | None = None,
    normalize: bool = True,
    device: str = "cpu",
    checkpointing: bool = False,
) -> AdaptedEncoder:
    """Build the frozen encoder and put the parts to train around it.

    The initial weights are drawn from torch's global generator: seed it first.

    Args:
        settings: The encoder: an image encoder.
        adaptation: What is trained.
        num_frames: Frames T of a clip.
        depths: Blocks to tap, from 0; negative numbers count from the end, None is the last block.
        normalize: Whether the final norm, which is trained then, is applied to every tapped depth.
        device: Where it runs, for good.
        checkpointing: Whether activations inside trained blocks are computed again for the gradient instead of kept.

    Raises:
        VidflowError: As `build_encoder` and `check_adaptation`; or the encoder is a video transformer.
    """
    if settings.family != "image":
        raise VidflowError(f"adaptation: encoder.family is {settings.family!r}; only image encoders can be adapted")
    frozen = build_encoder(**image_settings(settings), depths=depths, normalize_depths=normalize, device=device)
    if frozen.parts is not None:
        raise VidflowError(
            f"encoder.weights is {settings.weights!r}, which holds merged adapters already; take the weights that "
            "they were trained on"
        )
    check_adaptation(frozen.vit, adaptation, depths=depths)
    return AdaptedEncoder(frozen, adaptation, num_frames=num_frames, checkpointing=checkpointing)


__all__ = ["build_adapted"]
