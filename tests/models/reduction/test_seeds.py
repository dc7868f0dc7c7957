"""Random numbers from content alone."""

import shutil

import pytest
import torch

from vidflow.models.reduction.seeds import _mix, content_seeds, reseed, seed_of_key, uniform


def test_splitmix_matches_its_published_first_outputs() -> None:
    # The generator of Steele, Lea and Flood started at 0 yields E220A8397B1DCDAF first; the hash of 0 is that number.
    assert int(_mix(torch.tensor([0]))) == 0xE220A8397B1DCDAF - (1 << 64)


def test_numbers_are_uniform_and_streams_and_seeds_are_unrelated() -> None:
    draws = uniform(torch.arange(4), 20_000, stream=1)
    assert draws.min() >= 0
    assert draws.max() < 1
    # Standard error of a mean of 20000 uniforms is 0.002, of a correlation 0.007: five of each.
    assert (draws.mean(1) - 0.5).abs().max() < 0.01
    other = uniform(torch.arange(4), 20_000, stream=2)
    together = torch.corrcoef(torch.cat([draws, other]))
    assert (together - torch.eye(8)).abs().max() < 0.035


def test_a_sample_draws_the_same_alone_and_in_a_batch() -> None:
    seeds = torch.tensor([7, -3, 1 << 62])
    whole = uniform(seeds, 11, stream=3)
    assert torch.equal(whole, torch.cat([uniform(seed[None], 11, stream=3) for seed in seeds]))


def test_a_frames_seed_is_its_content() -> None:
    frames = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    seeds = content_seeds(frames)
    assert torch.equal(seeds[[2, 0]], content_seeds(frames[[2, 0]]))
    changed = frames.clone()
    changed[1, 4, 4, 1] ^= 1
    assert (content_seeds(changed) != seeds).tolist() == [False, True, False]
    # Neither a shift nor an exchange of pixels goes unnoticed.
    assert not (content_seeds(frames.roll(1, dims=2)) == seeds).any()


def test_another_draw_is_unrelated_and_draw_0_is_what_the_content_gives() -> None:
    seeds = torch.arange(4)
    assert torch.equal(reseed(seeds, 0), seeds)
    draws = torch.cat([uniform(reseed(seeds, draw), 20_000, stream=0) for draw in (0, 1, 2**31 - 1)])
    # As above: five standard errors.
    assert (torch.corrcoef(draws) - torch.eye(12)).abs().max() < 0.035


def test_a_keys_seed_fits_a_signed_integer_and_differs_by_key() -> None:
    seeds = {seed_of_key(f"key{number}") for number in range(100)}
    assert len(seeds) == 100
    assert all(0 <= seed < 1 << 63 for seed in seeds)


@pytest.mark.skipif(
    shutil.which("g++") is None, reason="Inductor compiles for the CPU with g++, which is not installed"
)
def test_inductor_compiles_the_same_numbers() -> None:
    given = torch.tensor([7, -3, 1 << 62])
    torch._dynamo.reset()
    draws = torch.compile(lambda given: uniform(reseed(given, 5), 20, stream=3), fullgraph=True)(given)
    seeds = reseed(given, 5)
    assert torch.equal(draws, uniform(seeds, 20, stream=3))
    # The counter of the published generator, spelled out.
    states = [(int(s) + (n + (3 << 32)) * 0x9E3779B97F4A7C15) % (1 << 64) for s in _mix(seeds) for n in range(20)]
    hashed = _mix(torch.tensor([state - (state >> 63 << 64) for state in states]))
    assert torch.equal(draws.flatten(), (hashed >> 40 & 0xFFFFFF).float() / (1 << 24))
