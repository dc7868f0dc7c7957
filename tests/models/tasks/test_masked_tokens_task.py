import math

import pytest
import torch

from vidflow.config.tasks import count_visible
from vidflow.models.cores.build import build_core
from vidflow.models.tasks import TaskOptions, build_metric, build_task
from vidflow.models.tasks.frame_decoder import encode_times
from vidflow.models.tasks.masking import Places, choose_places, nearest_visible, score_changes

B, T, N, D = 3, 6, 4, 16


def make(core="gated_transformer", **options):
    torch.manual_seed(0)
    return build_task("masked_tokens", build_core(core, embed_dim=D, num_layers=1, num_heads=2), TaskOptions(**options))


def draw(seed=0, num_depths=1):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(B, T, num_depths, N, D, generator=generator)
    prefix = torch.randn(B, T, 1, D, generator=generator)
    return tokens, prefix, {"mask_draws": torch.rand(B, T, generator=generator, dtype=torch.float64)}


def change(values, frames):
    """The same values, with others at some frames of each clip."""
    changed = values.clone()
    for row, own in enumerate(frames):
        changed[row, own] = torch.randn(changed[row, own].shape, generator=torch.Generator().manual_seed(9))
    return changed


@pytest.mark.parametrize("core", ["gru", "gated_transformer", "gated_mamba_mix", "causal_attention"])
@pytest.mark.parametrize("is_training", [False, True])
def test_a_hidden_token_changes_what_is_wanted_and_not_the_prediction(core, is_training):
    # Two depths, whose batch norm would see hidden frames in training.
    task = make(core, num_depths=2).train(is_training)
    tokens, prefix, queries = draw(num_depths=2)
    hidden = task.choose(tokens, queries).hidden
    torch.manual_seed(1)
    before = task(tokens, prefix, queries)
    torch.manual_seed(1)  # the same dropout
    after = task(change(tokens, hidden), change(prefix, hidden), queries)
    assert torch.equal(before["tokens"], after["tokens"])
    assert not torch.isclose(before["wanted"], after["wanted"]).all(-1).any()


def test_the_loss_sees_hidden_places_only():
    task = make().eval()
    tokens, prefix, queries = draw()
    visible, hidden = task.choose(tokens, queries)
    assert visible.shape == hidden.shape == (B, T // 2)
    predicted = task.predict(tokens, prefix, Places(visible, hidden))["tokens"]
    squares, cosines = [], []
    for row in range(B):
        for place, frame in enumerate(hidden[row].tolist()):
            truth = torch.cat([prefix[row, frame], tokens[row, frame, 0]])
            for token, answer in zip(truth, predicted[row, place], strict=True):
                unit = token / token.norm() * math.sqrt(D)
                squares.append((answer - unit).square().mean())
                cosines.append(answer @ unit / answer.norm() / unit.norm())
    torch.testing.assert_close(task.loss(task(tokens, prefix, queries), {}), torch.stack(squares).mean())
    by_cosine = make(mask_loss="cosine").eval()
    torch.testing.assert_close(
        by_cosine.loss(task(tokens, prefix, queries), {}), 1 - torch.stack(cosines).mean(), rtol=1e-5, atol=1e-5
    )


def test_importance_keeps_the_smallest_cosines_and_the_first_frame():
    task = make(mask_choice="importance", mask_ratio=0.6)
    tokens, _, queries = draw(3)
    kept = task.choose(tokens, queries).visible
    for row in range(B):
        scores = {0: -math.inf}
        for frame in range(1, T):
            a, b = tokens[row, frame - 1, 0].mean(0), tokens[row, frame, 0].mean(0)
            scores[frame] = float((a @ b) / (a.norm() * b.norm()))
        assert kept[row].tolist() == sorted(sorted(scores, key=scores.__getitem__)[: int(T * 0.4)])


def test_an_unchanged_frame_is_hidden_before_one_that_changes():
    tokens = torch.ones(1, 4, N, D)
    tokens[:, 2, :, : D // 2] = -1
    visible, hidden = choose_places(score_changes(tokens), 3)
    assert visible.tolist() == [[0, 2, 3]]
    assert hidden.tolist() == [[1]]


def test_a_clip_is_predicted_alike_whatever_else_is_in_its_batch():
    task = make().eval()
    tokens, prefix, queries = draw()
    together = task(tokens, prefix, queries)["tokens"]
    alone = task(tokens[:1], prefix[:1], {"mask_draws": queries["mask_draws"][:1]})["tokens"]
    # Batched products round differently.
    torch.testing.assert_close(together[:1], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("num_frames", "ratio", "visible"), [(10, 0.9, 1), (8, 0.5, 4), (7, 0.5, 3), (16, 0.75, 4)])
def test_the_published_number_of_frames_stays_visible(num_frames, ratio, visible):
    assert count_visible(num_frames, ratio) == visible


def test_the_copy_is_the_nearest_visible_frame_and_an_exact_answer_has_no_error():
    places = Places(torch.tensor([[0, 4]]), torch.tensor([[1, 2, 3, 5]]))
    assert nearest_visible(places).tolist() == [[0, 0, 4, 4]]
    wanted = torch.randn(2, 3, N, D, generator=torch.Generator().manual_seed(0))
    metric = build_metric("masked_tokens")
    metric.update({"tokens": wanted, "wanted": wanted, "copied": -wanted}, {})
    values = metric.compute()
    assert values["masked_mse"] == 0
    assert math.isclose(values["masked_cosine"], 1, abs_tol=1e-6)
    assert math.isclose(values["copied_cosine"], -1, abs_tol=1e-6)
    assert math.isclose(values["copied_mse"], float((4 * wanted.square()).mean()), rel_tol=1e-5)


def test_times_are_sines_and_cosines_that_tell_all_frames_apart():
    codes = encode_times(torch.arange(64)[None], 8)[0]
    assert torch.equal(codes[0], torch.tensor([0.0] * 4 + [1.0] * 4))
    torch.testing.assert_close(codes[5, 0], torch.tensor(math.sin(5.0)))
    torch.testing.assert_close(codes[5, 5], torch.tensor(math.cos(5.0 * 10_000 ** (-1 / 4))))
    assert torch.cdist(codes, codes).fill_diagonal_(9).min() > 0.1


def test_a_decoder_of_odd_width_is_refused():
    with pytest.raises(ValueError, match="readout_dim is 15"):
        make(readout_dim=15, readout_heads=1)
