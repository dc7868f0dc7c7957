"""The clips that encoders want: wrong ones are refused before the model runs, pixels are scaled as in training."""

import pytest
import torch
from published import FAMILIES
from tiny import clips_for, tiny_classifier

from vidflow.errors import VidflowError
from vidflow.models.encoder.video.geometry import ClipGeometry


@pytest.mark.parametrize("family", FAMILIES)
def test_wrong_clips_are_refused_with_both_numbers(family: str) -> None:
    classifier = tiny_classifier(family)
    clips, side = clips_for(classifier, 1), classifier.geometry.img_size
    for wrong, message in (
        (clips[:, :6], f"clips have 6 frames; {family} wants 8"),
        (torch.cat([clips, clips], dim=1), f"clips have 16 frames; {family} wants 8"),
        (clips[:, :, 16:, 16:], f"frames are {side - 16} x {side - 16} pixels; {family} wants {side} x {side}"),
        (clips[:, :, 16:], f"frames are {side - 16} x {side} pixels; {family} wants {side} x {side}"),
        (clips.float(), rf"clips are torch.float32 \(1, 8, .*; {family} wants uint8 \(B, 8, {side}, {side}, 3\)"),
    ):
        with pytest.raises(VidflowError, match=message):
            classifier.encode(wrong)


def test_white_and_black_are_one_and_minus_one_for_vivit() -> None:
    geometry = tiny_classifier("vivit").geometry
    white, black = (torch.full((1, 8, 48, 48, 3), level, dtype=torch.uint8) for level in (255, 0))
    assert (geometry.normalise(white, torch.float32) == 1).all()
    assert (geometry.normalise(black, torch.float32) == -1).all()


@pytest.mark.parametrize(
    ("family", "white", "black"),
    [
        ("videomae", 2.2489, -2.1179),
        ("timesformer", 2.4444, -2.0),
        ("motionformer", 1.0, -1.0),
        ("vjepa2", 2.2489, -2.1179),
    ],
)
def test_other_families_subtract_the_mean_and_divide_by_the_standard_deviation(
    family: str, white: float, black: float
) -> None:
    for level, wanted in ((255, white), (0, black)):
        frames = torch.full((1, 1, 1, 1, 3), level, dtype=torch.uint8)
        red = tiny_classifier(family).geometry.normalise(frames, torch.float32)[0, 0, 0]
        assert red.item() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(
    ("num_frames", "side", "message"),
    [(7, 64, "num_frames is 7, but .* 2 frames"), (0, 64, "num_frames is 0"), (8, 60, "side is 60 pixels, .* have 16")],
)
def test_clips_that_do_not_divide_into_patches_are_refused(num_frames: int, side: int, message: str) -> None:
    with pytest.raises(VidflowError, match=message):
        ClipGeometry(
            num_frames=num_frames, tubelet=2, img_size=side, patch_size=16, fps=15, mean=(0,), std=(1,),
            input_range=(0, 1),
        )  # fmt: skip
