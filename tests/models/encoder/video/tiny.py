"""Tiny video transformers whose every parameter is away from its neutral start."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from vidflow.models.encoder.video import VideoClassifier, VideoRecipe, build_video_classifier
from vidflow.models.encoder.video.recipe import AttentionKind


@cache
def tiny_classifier(family: str, attention: AttentionKind = "fused", **settings: Any) -> VideoClassifier:
    recipe = VideoRecipe(
        family=family, weights="random:3", size="tiny", settings={"num_labels": 11, **settings}, attention=attention
    )
    classifier = build_video_classifier(recipe)
    generator = torch.Generator().manual_seed(4)
    for parameter in classifier.model.backbone.model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return classifier


def clips_for(classifier: VideoClassifier, batch: int) -> Tensor:
    """Return clips of smooth random patterns."""
    side = classifier.geometry.img_size
    coarse = torch.rand(batch * classifier.num_frames, 3, 6, 6, generator=torch.Generator().manual_seed(5)) * 255
    fine = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    return fine.permute(0, 2, 3, 1).reshape(batch, -1, side, side, 3).to(torch.uint8)
