"""Build the encoder that a config describes: an image encoder or a video transformer."""

from vidflow.config.encoder import image_settings
from vidflow.config.schema import Encoder, FeatureSet
from vidflow.models.encoder.build import build_encoder
from vidflow.models.encoder.clip_encoder import ClipEncoder
from vidflow.models.encoder.video import VideoRecipe, build_video_encoder
from vidflow.models.encoder.video.windows import WindowedEncoder
from vidflow.models.reduction.build import build_reducer


def build_clip_encoder(settings: Encoder, features: FeatureSet, *, device: str) -> ClipEncoder:
    """Build the encoder of a feature set.

    Args:
        settings: The encoder.
        features: Tapped depths and the reducer, which must act before or inside the encoder.
        device: Where to run.

    Raises:
        VidflowError: As `build_encoder` and `build_video_encoder`.
    """
    reducer = features.reducer
    reduction = build_reducer(reducer.name, place=reducer.place, **reducer.settings)
    if settings.family != "image":
        recipe = video_recipe(settings)
        return WindowedEncoder(build_video_encoder(recipe, reduction=reduction, device=device, dtype=settings.dtype))
    return build_encoder(
        **image_settings(settings),
        depths=features.depths,
        normalize_depths=features.normalize,
        reduction=reduction,
        device=device,
    )


def video_recipe(settings: Encoder) -> VideoRecipe:
    """Return the recipe of a video transformer."""
    assert settings.family != "image"
    return VideoRecipe(family=settings.family, weights=settings.weights, size=settings.size, settings=settings.settings)


__all__ = ["build_clip_encoder", "video_recipe"]
