"""Weights of video transformers from folders, files, the hub and a random generator, and what does not fit."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from published import FAMILIES
from safetensors.torch import load_file, save_file
from tiny import clips_for, tiny_classifier

from vidflow.errors import VidflowError
from vidflow.models.encoder.video import VideoRecipe, build_video_classifier, build_video_encoder
from vidflow.models.encoder.video.sources import published_fps, source_of

LIBRARY = tuple(family for family in FAMILIES if family != "motionformer")


def saved(family: str, folder: Path) -> str:
    """Save a tiny random classifier as its library does."""
    model: Any = tiny_classifier.__wrapped__(family, num_labels=3).model.backbone.model
    if family == "vjepa2":  # with a predictor, as published
        inner = transformers.VJEPA2ForVideoClassification(model.config)
        inner.load_state_dict(model.state_dict(), strict=False)
        model = inner
    model.config.id2label = {0: "jump", 1: "run", 2: "sit"}
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("family", LIBRARY)
def test_a_folder_gives_its_classifier_and_its_encoder(family: str, tmp_path: Path) -> None:
    weights = saved(family, tmp_path)
    classifier = build_video_classifier(VideoRecipe(family=family, weights=weights))
    encoder = build_video_encoder(VideoRecipe(family=family, weights=weights))
    assert classifier.class_names == {"class": ("jump", "run", "sit")}
    clips = clips_for(encoder, 1)
    logits, encoded = classifier.classify_with_tokens(clips)
    assert logits["class"].shape == (1, 3)
    assert torch.equal(encoder.encode(clips).tokens, encoded.tokens)
    described = encoder.describe()
    assert json.loads(json.dumps(described)) == described
    assert described["transformers"] == transformers.__version__
    assert (described["num_frames"], described["fps"]) == (8, encoder.fps)


def test_classes_go_by_name_whatever_their_order(tmp_path: Path) -> None:
    weights = saved("videomae", tmp_path / "usual")
    usual = build_video_classifier(VideoRecipe(family="videomae", weights=weights))
    moved = usual.model.backbone.model
    order, head = torch.tensor([2, 0, 1]), moved.get_submodule("classifier")
    head.weight.data, head.bias.data = head.weight.data[order], head.bias.data[order]
    moved.config.id2label = {new: ("jump", "run", "sit")[old] for new, old in enumerate(order.tolist())}
    moved.save_pretrained(tmp_path / "moved")
    shuffled = build_video_classifier(VideoRecipe(family="videomae", weights=str(tmp_path / "moved")))
    first = build_video_classifier(VideoRecipe(family="videomae", weights=weights))
    clips = clips_for(first, 4)
    names = [
        [each.class_names["class"][index] for index in each.classify(clips)["class"].argmax(1)]
        for each in (first, shuffled)
    ]
    assert names[0] == names[1]
    assert shuffled.class_names != first.class_names


def test_a_folders_own_file_decides_on_the_normalisation_but_not_of_vivit(tmp_path: Path) -> None:
    for family, wanted in (("timesformer", 0.5), ("vivit", 0.0)):
        weights = saved(family, tmp_path / family)
        file = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        (tmp_path / family / "preprocessor_config.json").write_text(json.dumps(file))
        encoder = build_video_encoder(VideoRecipe(family=family, weights=weights))
        assert encoder.geometry.mean == (wanted,) * 3


def test_the_same_seed_gives_the_same_weights_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    digests = [
        build_video_encoder(VideoRecipe(family=family, weights=weights, size="tiny")).weights_sha256
        for family in ("vivit", "motionformer")
        for weights in ("random:1", "random:1", "random:2")
    ]
    assert torch.equal(before, torch.random.get_rng_state())
    assert digests[0] == digests[1] != digests[2]
    assert digests[3] == digests[4] != digests[5]


def test_a_file_of_tensors_needs_the_size_that_it_was_made_with(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    tensors = tiny_classifier("videomae").model.backbone.model.state_dict()
    save_file(tensors, path)
    recipe = {"family": "videomae", "weights": str(path), "settings": {"num_labels": 11}}
    build_video_classifier(VideoRecipe(**recipe, size="tiny"))
    save_file({key: value for key, value in tensors.items() if key != "classifier.bias"}, path)
    with pytest.raises(VidflowError, match=r"does not fit a VideoMAEForVideoClassification .*\n  missing classifier"):
        build_video_classifier(VideoRecipe(**recipe, size="tiny"))


def test_a_released_motionformer_may_have_other_positions_and_two_heads(tmp_path: Path) -> None:
    """The file's table of positions is resampled to the frames; EPIC-KITCHENS models name verbs and nouns."""
    settings = {"num_labels": {"verb": 5, "noun": 7}, "table_size": 6}
    recipe = VideoRecipe(family="motionformer", weights="random:0", size="tiny", settings=settings)
    state = build_video_classifier(recipe).model.backbone.model.state_dict()
    state["patch_embed.proj.weight"] = torch.zeros(48, 3, 16, 16)
    path = tmp_path / "ek.pyth"
    torch.save({"epoch": 1, "model_state": state}, path)
    found = build_video_classifier(VideoRecipe(family="motionformer", weights=str(path), size="tiny"))
    logits = found.classify(clips_for(found, 1))
    assert {head: tuple(values.shape) for head, values in logits.items()} == {"verb": (1, 5), "noun": (1, 7)}
    assert (
        "head0.weight"
        not in build_video_encoder(
            VideoRecipe(family="motionformer", weights=str(path), size="tiny")
        ).model.backbone.model.state_dict()
    )
    with pytest.raises(
        VidflowError, match=r"does not fit a motionformer.*\n(.*\n)*.*temp_embed is \(1, 4, 48\), wanted \(1, 2"
    ):
        build_video_encoder(
            VideoRecipe(family="motionformer", weights=str(path), size="tiny", settings={"num_frames": 4})
        )


@pytest.mark.parametrize(
    ("family", "weights", "settings", "message"),
    [
        ("vivit", "nowhere", {}, "wanted an id on the Hugging Face hub such as 'google/vivit"),
        ("vivit", "no/file.pyth", {}, "no such file"),
        ("vivit", "vidflow/no-such-model", {}, "are not in the Hugging Face cache or reachable on the hub"),
        ("vivit", "random:0", {"hidden": 3}, "encoder.settings has hidden, which VivitConfig does not know"),
        ("motionformer", "random:0", {"hidden": 3}, "has hidden; motionformer knows num_frames"),
        ("motionformer", "vidflow/no-such-model", {}, "motionformer wants 'random:SEED' or a file"),
        ("vivid", "random:0", {}, "encoder.family is 'vivid'; wanted one of vivit, videomae"),
        ("timesformer", "random:0", {"attention_type": "joint_space_time"}, "wanted 'divided_space_time'"),
    ],
)
def test_what_cannot_be_built_says_what_to_give(family: Any, weights: str, settings: Any, message: str) -> None:
    with pytest.raises(VidflowError, match=message):
        build_video_encoder(VideoRecipe(family=family, weights=weights, size="tiny", settings=settings))


def test_an_unknown_size_is_refused() -> None:
    with pytest.raises(VidflowError, match=r"encoder\.size is 'great'; vivit has the sizes base, tiny"):
        build_video_encoder(VideoRecipe(family="vivit", weights="random:0", size="great"))


def test_a_folder_of_another_family_clip_or_without_a_classifier_is_refused(tmp_path: Path) -> None:
    weights = saved("videomae", tmp_path)
    with pytest.raises(VidflowError, match=r"hold a 'videomae'; encoder\.family wants a 'vivit'"):
        build_video_encoder(VideoRecipe(family="vivit", weights=weights))
    timesformer = saved("timesformer", tmp_path / "timesformer")
    with pytest.raises(VidflowError, match="do not fit"):
        build_video_encoder(VideoRecipe(family="timesformer", weights=timesformer, settings={"num_frames": 4}))
    tensors = load_file(tmp_path / "model.safetensors")
    bare = {key: value for key, value in tensors.items() if not key.startswith("classifier")}
    save_file(bare, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VidflowError, match=r"\n  missing classifier.bias\n  missing classifier.weight"):
        build_video_classifier(VideoRecipe(family="videomae", weights=weights))
    build_video_encoder(VideoRecipe(family="videomae", weights=weights))


def test_an_encoder_is_read_from_a_pre_training_checkpoint_without_its_decoder(tmp_path: Path) -> None:
    config = tiny_classifier("videomae").model.backbone.model.config
    decoder = {"decoder_hidden_size": 24, "decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 1}
    own = transformers.VideoMAEConfig(**{**config.to_dict(), **decoder, "use_mean_pooling": False})
    transformers.VideoMAEForPreTraining(own).save_pretrained(tmp_path)
    encoder = build_video_encoder(VideoRecipe(family="videomae", weights=str(tmp_path)))
    tokens = encoder.encode(clips_for(encoder, 1)).tokens
    # Such a model has a norm after its last block.
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(1, 36), atol=1e-5, rtol=0)
    with pytest.raises(VidflowError, match=r"do not fit a VideoMAEForVideoClassification"):
        build_video_classifier(VideoRecipe(family="videomae", weights=str(tmp_path)))


def test_names_for_another_number_of_classes_are_refused() -> None:
    recipe = VideoRecipe(family="vivit", weights="random:0", size="tiny", settings={"num_labels": 2})
    assert build_video_classifier(recipe, class_names={"class": ("a", "b")}).class_names == {"class": ("a", "b")}
    with pytest.raises(VidflowError, match=r"have {'class': 1} names by head; the classifier has {'class': 2}"):
        build_video_classifier(recipe, class_names={"class": ("a",)})


def test_a_missing_library_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(VidflowError, match=r"needs the package transformers, .*: pip install 'vidflow\[video\]'"):
        build_video_encoder(VideoRecipe(family="vivit", weights="random:0", size="tiny"))
    # Our own needs none.
    build_video_encoder(VideoRecipe(family="motionformer", weights="random:0", size="tiny"))


def test_sources_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a.pyth").touch()
    texts = ("random:7", str(tmp_path), str(tmp_path / "a.pyth"), "MCG-NJU/videomae-base-finetuned-kinetics")
    assert [source_of(text).kind for text in texts] == ["random", "folder", "file", "hub"]


def test_published_models_of_other_sampling_are_known_by_their_id() -> None:
    ids = ("MCG-NJU/videomae-base-finetuned-ssv2", "facebook/timesformer-hr-finetuned-k400", "a/b")
    assert [published_fps(source_of(text)) for text in ids] == ["uniform", 1.875, None]
    recipe = VideoRecipe(family="videomae", weights="random:0", size="tiny", fps="uniform")
    assert build_video_encoder(recipe).describe()["fps"] == "uniform"
