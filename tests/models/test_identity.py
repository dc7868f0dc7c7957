"""What identifies an encoder's weights, without torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vidflow.errors import VidflowError
from vidflow.models.identity import weights_identity


def test_a_file_is_identified_by_its_bytes_and_not_by_its_name(tmp_path: Path) -> None:
    first, copy, other = (tmp_path / name for name in ("a.pt", "b.safetensors", "c.pth"))
    first.write_bytes(b"weights")
    copy.write_bytes(b"weights")
    other.write_bytes(b"other weights")
    # sha256 of the seven bytes, from coreutils' sha256sum.
    wanted = "sha256:9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    identities = [weights_identity("vit_tiny_patch16_224", str(path)) for path in (first, copy, other)]
    assert identities[:2] == [wanted, wanted]
    assert identities[2] != wanted


def test_a_file_that_is_replaced_is_identified_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(b"weights")
    status, before = path.stat(), weights_identity("vit_tiny_patch16_224", str(path))
    path.write_bytes(b"Weights")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert weights_identity("vit_tiny_patch16_224", str(path)) != before


def test_random_weights_are_identified_by_seed_and_library_versions() -> None:
    identity = weights_identity("vit_tiny_patch16_224", "random:7")
    assert "random:7" in identity
    assert "torch=" in identity
    assert "timm=" in identity
    assert identity != weights_identity("vit_tiny_patch16_224", "random:8")


@pytest.mark.parametrize("weights", ["random", "random:x", "random:-1", "weights.bin", "no/such/file.pt"])
def test_a_malformed_setting_is_named(weights: str) -> None:
    with pytest.raises(VidflowError, match=weights):
        weights_identity("vit_tiny_patch16_224", weights)


def test_hub_weights_that_cannot_be_reached_say_what_to_do() -> None:
    with pytest.raises(VidflowError, match=r"give encoder\.weights a local file"):
        weights_identity("test_vit", "hub")


def test_hub_weights_of_a_model_without_any_are_refused() -> None:
    with pytest.raises(VidflowError, match="no plain checkpoint"):
        weights_identity("test_vit4", "hub")


def test_an_identity_needs_neither_torch_nor_timm(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(b"weights")
    script = (
        "import sys; from vidflow.models.identity import weights_identity as identity; "
        f"identity('x', 'random:1'); identity('x', {str(path)!r}); "
        "sys.exit(bool({'torch', 'timm'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
