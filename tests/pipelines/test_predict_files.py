import pytest
import torch
from safetensors.torch import save_file

from pipelines.cli import main
from pipelines.predict_files import read_state
from vidflow.errors import VidflowError


@pytest.mark.parametrize("option", ["--out", "--json", "--depth", "--save-state"])
def test_an_output_in_an_object_store_is_refused_and_no_local_folder_is_made(option, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["predict", "trial", "video.mp4", option, "gs://bucket/y.mp4"])
    assert left.value.code == 2
    assert f"{option}: got a URL, wanted a path on a disk" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_state_without_a_digest_is_said_to_be_of_an_older_vidflow(tmp_path):
    save_file({"core.0": torch.zeros(2)}, tmp_path / "state.safetensors")
    with pytest.raises(VidflowError, match="written by an older vidflow") as caught:
        read_state(tmp_path / "state.safetensors")
    assert "None" not in str(caught.value)
