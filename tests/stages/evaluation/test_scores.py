"""Accuracy per video, from the logits of its clips and squares."""

import numpy as np
import pytest

from vidflow.errors import DamagedError, VidflowError
from vidflow.files import file_sha256
from vidflow.stages.evaluation.files import ShardLogits, key_number, read_logits, write_logits
from vidflow.stages.evaluation.scores import answer_videos, score


def shard(keys, labels, **logits):
    return ShardLogits(
        keys=np.array(keys, dtype=np.uint64),
        labels=np.array(labels, dtype=np.int64),
        logits={head: np.array(values, dtype=np.float32) for head, values in logits.items()},
    )


EMPTY = shard([], [])


def test_a_files_logits_come_back_and_a_damaged_one_is_set_aside(tmp_path):
    path = tmp_path / "point" / "shard-000000.npz"
    written = shard([key_number("ffffffffffffffff"), 1], [1, 0], **{"class": [[1.0, 2.0], [3.0, 4.0]]})
    write_logits(path, written)
    sha256 = file_sha256(path)
    found = read_logits(path, sha256)
    assert found.keys.tolist() == [2**64 - 1, 1]
    assert found.logits["class"].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedError):
        read_logits(path, sha256)


def test_a_video_is_right_by_the_mean_of_its_clips_probabilities_not_of_their_logits():
    # Two clips say class 0 a little, one says class 1 with certainty. Label 0 is class 0.
    files = [
        shard([1, 2], [0, 0], **{"class": [[0.5, 0.0], [0.5, 0.0]]}),
        EMPTY,
        shard([3], [0], **{"class": [[-90, 0]]}),
    ]
    answers = answer_videos(files, {1: "a", 2: "a", 3: "a"}, {"class": [0]})
    means = np.mean([[1 / (1 + np.exp(-0.5)), 1 / (1 + np.exp(0.5))]] * 2 + [[0, 1]], axis=0)
    assert (means[0] < means[1], answers.right["class"].tolist()) == (True, [False])
    assert answer_videos(files[:1], {1: "a", 2: "a"}, {"class": [0]}).right["class"].tolist() == [True]


def test_labels_are_numbers_of_the_manifest_and_classes_those_of_the_classifier():
    logits = np.eye(7, dtype=np.float32)[[6, 2]] * 9
    answers = answer_videos([shard([1, 2], [1, 0], **{"class": logits})], {1: "b", 2: "a"}, {"class": [2, 6]})
    assert answers.videos == ["a", "b"]
    (scored,) = score(answers, None)
    assert (scored.top1.value, scored.top5.value, scored.change, scored.num_videos) == (1.0, 1.0, None, 2)


def test_an_action_is_right_if_verb_and_noun_are():
    verbs, nouns = np.eye(3)[[0, 0, 1, 2]], np.eye(4)[[3, 1, 1, 0]]
    files = [shard([1, 2, 3, 4], [0, 0, 1, 1], verb=verbs, noun=nouns)]
    classes = {"verb": [0, 1], "noun": [3, 1]}
    scores = {each.head: each for each in score(answer_videos(files, {n: f"v{n}" for n in range(1, 5)}, classes), None)}
    assert {head: each.top1.value for head, each in scores.items()} == {"verb": 0.75, "noun": 0.5, "action": 0.5}
    assert scores["action"].top5 is None


def test_the_change_is_of_the_same_videos():
    def answers(right):
        logits = np.eye(2)[[0 if each else 1 for each in right]]
        return answer_videos(
            [shard(range(len(right)), [0] * len(right), **{"class": logits})],
            {n: str(n) for n in range(9)},
            {"class": [0]},
        )

    before, after = answers([1, 1, 1, 0, 1]), answers([1, 0, 1, 1, 0])
    (scored,) = score(after, before)
    assert (scored.change.gained, scored.change.lost, scored.change.p) == (1, 2, 1.0)
    assert scored.change.top1.value == pytest.approx(-0.2)
    with pytest.raises(VidflowError, match="different videos"):
        score(answers([1]), before)
    with pytest.raises(VidflowError, match="no clip was evaluated"):
        answer_videos([EMPTY], {}, {"class": [0]})
