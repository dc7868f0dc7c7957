import pytest
import torch

from pipelines.bench.adapted import measure_encoder
from pipelines.bench.clock import Target


@pytest.mark.slow
def test_merged_encoders_are_timed_beside_the_stock_one() -> None:
    target = Target(device=torch.device("cpu"), dtype=torch.float32)
    plain, mixed = measure_encoder("test_vit", target, img_size=32, most_frames=8, rounds=1)
    assert plain.split()[:2] == ["test_vit", "none"]
    assert mixed.split()[1:4] == ["2", "of", "2"]
