"""The last layer that is fitted to a split, and the checkpoint that it becomes."""

import numpy as np
import pytest
import torch

from vidflow.errors import VidflowError
from vidflow.models.encoder.video import VideoRecipe, build_video_classifier
from vidflow.stages.evaluation.head import fit_head, last_inputs, last_layer, save_with_head


def test_the_fitted_layer_finds_classes_that_lie_apart_whatever_the_scale_of_the_inputs():
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 3
    centres = generator.normal(size=(3, 8))
    inputs = (centres[labels] + 0.1 * generator.normal(size=(60, 8))) * np.logspace(-3, 3, 8) + 5
    weight, bias = fit_head(inputs.astype(np.float32), labels, 3)
    logits = inputs @ weight.double().numpy().T + bias.double().numpy()
    assert (logits.argmax(axis=1) == labels).all()


@pytest.mark.parametrize("family", ["vivit", "videomae", "timesformer", "vjepa2"])
def test_the_saved_checkpoint_has_the_new_classes_and_answers_with_the_fitted_layer(family, tmp_path):
    classifier = build_video_classifier(VideoRecipe(family=family, weights="random:0", size="tiny"))
    clip = classifier.geometry
    frames = torch.randint(0, 256, (2, clip.num_frames, clip.img_size, clip.img_size, 3), dtype=torch.uint8)
    inputs = last_inputs(classifier, frames)["inputs"]
    weight, bias = torch.randn(4, inputs.shape[1]), torch.randn(4)
    wanted = inputs @ weight.T + bias
    save_with_head(classifier, weight, bias, ["a", "b", "c", "d"], tmp_path / "model")
    again = build_video_classifier(VideoRecipe(family=family, weights=str(tmp_path / "model")))
    assert again.class_names == {"class": ("a", "b", "c", "d")}
    assert again.geometry == clip
    assert torch.allclose(again.classify(frames)["class"], wanted, atol=1e-4)


def test_a_model_without_one_last_layer_is_refused():
    model = build_video_classifier(VideoRecipe(family="motionformer", weights="random:0", size="tiny"))
    with pytest.raises(VidflowError, match="motionformer has no single last layer"):
        last_layer(model)
