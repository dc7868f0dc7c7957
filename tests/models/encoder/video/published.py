"""Read the published video transformers' recorded runs, and repeat them."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vidflow.models.encoder.video import VideoClassifier, VideoRecipe, build_video_classifier, with_reduction
from vidflow.models.encoder.video.state import ClipTokens
from vidflow.models.reduction.bipartite import BlockBipartite
from vidflow.models.reduction.in_block import BlockView
from vidflow.models.reduction.matching import Matching, match_pairs

FAMILIES = ("vivit", "videomae", "timesformer", "motionformer", "vjepa2")
MODES = {"merge": "tome"}


@dataclass(frozen=True)
class Recording:
    """One file: a tiny model, its clips, and the outputs of all cases."""

    family: str
    tensors: dict[str, Tensor]
    about: dict[str, Any]

    @property
    def cases(self) -> dict[str, dict[str, Any]]:
        return {"plain": {}} | self.about["cases"]

    def of(self, case: str, what: str) -> Tensor:
        return self.tensors[f"{case}.{what}"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded(BlockBipartite):
    """Random matching with the recorded scores of all pairs instead of our own numbers."""

    scores: dict[int, Tensor] = field(default_factory=dict)

    def match(self, view: BlockView) -> Matching:
        # The file's scores have a row for the class token.
        return match_pairs(self.scores[view.index][:, view.num_prefix :], first=view.num_prefix % 2)


def read_recording(shared_dir: Path, family: str) -> Recording:
    with safe_open(shared_dir / f"fixtures/video_{family}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return Recording(family, tensors, json.loads(file.metadata()["about"]))


def weights_folder(recording: Recording, folder: Path) -> Path:
    """Write the recorded model as the library saves one."""
    if recording.family == "motionformer":
        return motionformer_file(recording, folder)
    weights = {key.removeprefix("w."): value for key, value in recording.tensors.items() if key.startswith("w.")}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(recording.about["config"]))
    return folder


def motionformer_file(recording: Recording, folder: Path) -> Path:
    """Write the recorded model as SlowFast saves one."""
    weights = {key.removeprefix("w."): value for key, value in recording.tensors.items() if key.startswith("w.")}
    torch.save({"epoch": 35, "model_state": weights, "cfg": "NUM_GPUS: 8"}, folder / "tiny.pyth")
    return folder / "tiny.pyth"


def build_recorded(recording: Recording, folder: Path, **recipe: Any) -> VideoClassifier:
    folder.mkdir(exist_ok=True)
    weights = str(weights_folder(recording, folder))
    return build_video_classifier(VideoRecipe(family=recording.family, weights=weights, size="tiny", **recipe))


def reducer_of(recording: Recording, case: str) -> BlockBipartite | None:
    """Return the reducer of a case, with what the published runs leave to the model left to ours."""
    about = recording.cases[case]
    if "mode" not in about:
        return None
    settings: dict[str, Any] = {"mode": MODES.get(about["mode"], about["mode"]), "num_merged": tuple(about["r"])}
    settings["proportional_attention"] = about.get("prop_attn")
    if "threshold" in about:
        settings["threshold"] = about["threshold"]
    if "heads" in about:
        settings["head_pooling"] = about["heads"]
    if "place" in about:
        settings["positions"] = about["place"]
    if about.get("keep_order") == "index":
        settings["order"] = "index"
    if recording.family == "motionformer":
        settings["scope"] = "frame" if about.get("by_frame") else "stride"
    prefix = f"{case}.scores."
    scores = {int(key[len(prefix) :]): value for key, value in recording.tensors.items() if key.startswith(prefix)}
    return Recorded(**settings, scores=scores) if scores else BlockBipartite(**settings)


def run_case(classifier: VideoClassifier, recording: Recording, case: str) -> tuple[ClipTokens, Tensor]:
    """Return the tokens after the final norm, and the logits."""
    reducer = reducer_of(recording, case)
    made = classifier if reducer is None else with_reduction(classifier, reducer)
    with torch.inference_mode():
        seeds = torch.arange(2) if reducer is not None and reducer.is_random else None
        state = made.walk.run(recording.tensors["pixel_values"], seeds=seeds)
        assert made.model.backbone.classify is not None
        return state, made.model.backbone.classify(state.tokens)["class"]


def as_recorded(recording: Recording, state: ClipTokens, case: str) -> dict[str, Tensor]:
    """Return rows, sizes and assignment in the layout of the file."""
    num_frames = {"timesformer": 8, "motionformer": 4}.get(recording.family, 1)
    sizes, rows, patches = state.sizes, state.assignment, state.patches
    if num_frames == 1:
        if state.num_prefix:
            sizes = torch.nn.functional.pad(sizes, (1, 0), value=1.0)
            rows = torch.nn.functional.pad(torch.where(rows < 0, rows, rows + 1), (1, 0))
        return {"tokens": state.tokens, "sizes": sizes, "assignment": rows.int()}
    is_stride = recording.family == "motionformer" and not recording.cases[case].get("by_frame")
    if is_stride:  # row = slot x F + group
        sizes = sizes.unflatten(1, (-1, num_frames)).transpose(1, 2).flatten(0, 1)
        rows = torch.where(rows < 0, rows, rows // num_frames)
        rows = rows.unflatten(1, (-1, num_frames)).transpose(1, 2).flatten(0, 1)
    else:
        sizes = sizes.unflatten(1, (num_frames, -1)).flatten(0, 1)
        rows = torch.where(rows < 0, rows, rows % sizes.shape[1])
        rows = rows.unflatten(1, (num_frames, -1)).flatten(0, 1)
    if recording.family == "timesformer":  # time innermost
        patches = patches.unflatten(1, (num_frames, -1)).transpose(1, 2).flatten(1, 2)
    return {"tokens": torch.cat([state.prefix, patches], dim=1), "sizes": sizes, "assignment": rows.int()}
