"""What timm's conversion of published checkpoints leaves out, and that nothing is left out which features depend on."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from vidflow.errors import VidflowError
from vidflow.models.encoder.conversion import fit_to_model
from vidflow.models.encoder.loading import load_weights

TINY = {"embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0, "img_size": 64, "dynamic_img_size": False}
PLAIN, WITH_BIASES = "vit_small_patch16_dinov3", "vit_small_patch16_dinov3_qkvb"
PERIODS = 100 ** (2 * torch.arange(4) / 8)


def tiny_vit(name: str, seed: int = 0) -> Any:
    """Build a tiny model whose every parameter is away from its neutral start."""
    torch.manual_seed(seed)
    vit = timm.create_model(name, **TINY).eval()
    for parameter in vit.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return vit.requires_grad_(False)


def as_dinov3(vit: Any, *, key_bias: float = 0.0) -> dict[str, Tensor]:
    """Return the tensors of a tiny model of timm as DINOv3's own files have them."""
    state: dict[str, Tensor] = dict(vit.state_dict())
    state["storage_tokens"] = state.pop("reg_token")
    state["mask_token"] = torch.ones(1, 48)
    state["rope_embed.periods"] = PERIODS.bfloat16()
    for block in (f"blocks.{index}." for index in range(2)):
        query, value = (state.pop(f"{block}attn.{part}_bias", torch.zeros(48)) for part in ("q", "v"))
        state[f"{block}attn.qkv.bias"] = torch.cat([query, torch.full((48,), key_bias), value])
        state[f"{block}ls1.gamma"], state[f"{block}ls2.gamma"] = (state.pop(f"{block}gamma_{i}") for i in (1, 2))
    return state


def load(tmp_path: Path, state: dict[str, Any], name: str) -> Any:
    path, vit = tmp_path / "weights.safetensors", tiny_vit(name, seed=1)
    save_file(state, path)
    load_weights(vit, path, name=f"{name}.lvd1689m")
    return vit


def features(vit: Any) -> Tensor:
    tokens: Tensor = vit.forward_features(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    return tokens


def test_biases_that_the_model_does_not_have_are_refused_by_name_and_the_model_that_has_them_takes_them(
    tmp_path: Path,
) -> None:
    trained = tiny_vit(WITH_BIASES)
    state = as_dinov3(trained)
    with pytest.raises(VidflowError, match="2 tensors differ") as caught:
        load(tmp_path, state, PLAIN)
    for part in (
        "weights.safetensors does not fit encoder",
        r"blocks.0.attn.qkv.bias (144,) is not zero, but nothing in the model takes it",
        r"blocks.1.attn.qkv.bias (144,) is not zero",
        f"encoder.name '{WITH_BIASES}' has these biases",
    ):
        assert part in str(caught.value)
    assert torch.equal(features(load(tmp_path, state, WITH_BIASES)), features(trained))


def test_biases_of_zero_are_left_out_without_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = tiny_vit(PLAIN)
    loaded = load(tmp_path, as_dinov3(trained), PLAIN)
    assert torch.equal(features(loaded), features(trained))
    assert capsys.readouterr().out == ""


def test_a_bias_of_keys_is_refused_unless_its_mask_takes_it_away(tmp_path: Path) -> None:
    trained = tiny_vit(WITH_BIASES)
    state = as_dinov3(trained, key_bias=0.5)
    with pytest.raises(VidflowError, match=r"blocks.0.attn.qkv.bias \(144,\) is not zero, .* takes 48 of its numbers"):
        load(tmp_path, state, WITH_BIASES)
    mask = torch.ones(144)
    mask[48:96] = 0
    masks = {f"blocks.{index}.attn.qkv.bias_mask": mask.clone() for index in range(2)}
    assert torch.equal(features(load(tmp_path, state | masks, WITH_BIASES)), features(trained))
    everything = {key: torch.zeros(144) for key in masks}
    assert torch.equal(load(tmp_path, state | everything, PLAIN).norm.weight, trained.norm.weight)


def test_a_rotary_embedding_of_other_periods_is_refused(tmp_path: Path) -> None:
    state = as_dinov3(tiny_vit(PLAIN))
    for periods in (PERIODS * 1.1, PERIODS[:3].clone()):
        with pytest.raises(VidflowError, match=r"rope_embed.periods \(.,\) is not what the model computes"):
            load(tmp_path, state | {"rope_embed.periods": periods}, PLAIN)
    with pytest.raises(VidflowError, match=r"rope_embed.offsets \(4,\) is not zero"):
        load(tmp_path, state | {"rope_embed.offsets": PERIODS}, PLAIN)


@pytest.mark.parametrize(
    "name",
    [
        "vit_small_patch14_reg4_dinov2",
        "vit_base_patch16_clip_224.openai",
        "eva02_tiny_patch14_224",
        "vit_base_patch16_siglip_224",
        "deit3_small_patch16_224",
        "flexivit_small",
    ],
)
def test_models_of_timm_lose_nothing_at_a_quarter_of_their_grid(name: str) -> None:
    # Fewer positions than in the file: resampling must not look like a loss.
    side = 56 if "patch14" in name else 64
    large, small = (
        timm.create_model(name, **(TINY | {"img_size": 4 * size, "pretrained": False}))
        for size in (side, side // 4 * 2)
    )
    fitted, losses = fit_to_model(small, dict(large.state_dict()), name)
    assert losses == []
    assert fitted.keys() == small.state_dict().keys()


def test_the_text_of_a_checkpoint_of_images_and_text_is_left_unread(tmp_path: Path) -> None:
    vit = tiny_vit("vit_small_patch14_dinov2")
    state = {f"visual.trunk.{key}": value for key, value in vit.state_dict().items()}
    text = {"text.transformer.weight": torch.ones(3), "visual.head.proj.weight": torch.ones(4, 48)}
    loaded = tiny_vit("vit_small_patch14_dinov2", seed=1)
    save_file(state | text, tmp_path / "weights.safetensors")
    load_weights(loaded, tmp_path / "weights.safetensors", name="vit_small_patch14_dinov2")
    torch.testing.assert_close(dict(loaded.state_dict()), dict(vit.state_dict()), rtol=0, atol=0)


def test_a_projection_of_another_patch_size_is_refused_within_a_file_of_a_training_too(tmp_path: Path) -> None:
    vit = tiny_vit(PLAIN)
    weights = {"patch_embed.proj.weight": torch.zeros(48, 3, 8, 8)}
    torch.save({"model": vit.state_dict() | weights, "epoch": 3, "optimizer": {"x": torch.ones(3)}}, tmp_path / "a.pt")
    with pytest.raises(VidflowError, match="another architecture"):
        load_weights(vit, tmp_path / "a.pt", name=PLAIN)
    torch.save({"model": tiny_vit(PLAIN, 3).state_dict(), "optimizer": {"x": torch.ones(3)}}, tmp_path / "a.pt")
    load_weights(vit, tmp_path / "a.pt", name=PLAIN)
    assert torch.equal(features(vit), features(tiny_vit(PLAIN, 3)))
