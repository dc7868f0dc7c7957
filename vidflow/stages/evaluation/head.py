"""Fit the last layer of a classifier to the labels of a split, and save it as a checkpoint of its own.

Axes: n clips, D width of the last layer's input, K classes.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional

from vidflow.errors import VidflowError
from vidflow.models.encoder.video import VideoClassifier
from vidflow.models.encoder.video.stock import save_library_model
from vidflow.store.layout import STAGE_MANIFEST, list_file, publish_json

_PENALTY = 1e-3
_MAX_STEPS = 500


def last_layer(classifier: VideoClassifier) -> nn.Linear:
    """Return the layer that turns what a classifier read into logits.

    Raises:
        VidflowError: If there is no single such layer.
    """
    model: Any = classifier.model.backbone.model
    layer = getattr(model, "classifier", None)
    if not isinstance(layer, nn.Linear) or not hasattr(model, "save_pretrained"):
        raise VidflowError(
            f"evaluate.fit_head: {classifier.recipe.family} has no single last layer that can be replaced; wanted "
            "vivit, videomae, timesformer or vjepa2"
        )
    return layer


INPUTS = "inputs"


def last_inputs(classifier: VideoClassifier, frames: UInt8[Tensor, "B T H W 3"]) -> dict[str, Float[Tensor, "B D"]]:
    """Return what the last layer sees of clips, under the name `inputs`."""
    seen: list[Tensor] = []
    handle = last_layer(classifier).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        classifier.classify(frames)
    finally:
        handle.remove()
    return {INPUTS: seen[-1]}


def fit_head(
    inputs: Float[np.ndarray, "n D"], labels: Int64[np.ndarray, " n"], num_classes: int
) -> tuple[Float[Tensor, "K D"], Float[Tensor, " K"]]:
    """Fit a multinomial logistic regression, with a small penalty on standardised inputs; deterministic.

    Args:
        inputs: What the last layer sees.
        labels: Class of each clip.
        num_classes: K.

    Returns:
        Weight and bias for inputs as they are.
    """
    features, truth = torch.from_numpy(inputs).double(), torch.from_numpy(labels)
    mean, scale = features.mean(0), features.std(0).clamp(min=1e-6)
    scaled = (features - mean) / scale
    weight = torch.zeros(num_classes, features.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_MAX_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(scaled @ weight.T + bias, truth) + _PENALTY * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    plain = weight.detach() / scale
    return plain.float(), (bias.detach() - plain @ mean).float()


def save_with_head(
    classifier: VideoClassifier,
    weight: Float[Tensor, "K D"],
    bias: Float[Tensor, " K"],
    class_names: Sequence[str],
    folder: Path,
) -> None:
    """Save the classifier with another last layer, as a folder that `weights` can name.

    Args:
        classifier: A classifier in float32 that is not used afterwards.
        weight: Weight of its new last layer.
        bias: Bias of that layer.
        class_names: Names of the classes, in the order of the logits.
        folder: The folder; complete or not there.
    """
    model: Any = classifier.model.backbone.model
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight, "bias": bias})
    model.classifier = layer
    model.config.id2label = dict(enumerate(class_names))
    model.config.label2id = {name: index for index, name in enumerate(class_names)}
    pixels = {"image_mean": classifier.model.geometry.mean, "image_std": classifier.model.geometry.std}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".head-") as aside:
        made = Path(aside, "model")
        save_library_model(model, made)
        (made / "preprocessor_config.json").write_text(json.dumps(pixels))
        publish_json(made / STAGE_MANIFEST, {"files": [list_file(path) for path in sorted(made.iterdir())]})
        made.rename(folder)


__all__ = ["INPUTS", "fit_head", "last_inputs", "last_layer", "save_with_head"]
