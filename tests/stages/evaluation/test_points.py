"""The grid: r = 0 once per model, seeds for random modes alone, published costs."""

import pytest

from vidflow.config.schema import Config, Evaluate, EvaluateAxes, VideoModel
from vidflow.errors import ConfigError
from vidflow.models.encoder.video.outline import classifier_outline
from vidflow.stages.evaluation.points import Point, cost_of, list_points, recipe_of, reduction_of


def evaluate(**axes):
    models = {
        "vivit": VideoModel(family="vivit", weights="random:0"),
        "mae": VideoModel(family="videomae", weights="random:0", r=[150]),
    }
    return Evaluate(models=models, axes=EvaluateAxes(**axes))


def test_every_model_has_r_0_once_and_points_equal_by_meaning_are_one():
    points = list_points(evaluate(r=[0, 300, 300], mode=["merge", "random_drop"], seed=[0, 1], schedule=["constant"]))
    assert points == [
        Point(model="vivit"),
        Point(model="vivit", r=300, mode="merge"),
        Point(model="vivit", r=300, mode="random_drop", seed=0),
        Point(model="vivit", r=300, mode="random_drop", seed=1),
        Point(model="mae"),
        Point(model="mae", r=150, mode="merge"),
        Point(model="mae", r=150, mode="random_drop", seed=0),
        Point(model="mae", r=150, mode="random_drop", seed=1),
    ]


@pytest.mark.parametrize(
    ("family", "r", "gmacs"),
    [
        ("vivit", 300, (451.5, 179.2, 109.0, 276.0)),
        ("videomae", 150, (180.3, 74.2, 45.1, 112.3)),
        ("timesformer", 18, (195.8, 90.5, 56.9, 131.4)),
        ("motionformer", 18, (369.4, 171.5, 109.8, 249.4)),
    ],
)
def test_predicted_costs_are_the_published_ones(family, r, gmacs):
    model = VideoModel(family=family, weights="random:0")
    recipe = recipe_of(Config(evaluate=Evaluate(models={"m": model})), "m", [str(number) for number in range(400)])
    shape = classifier_outline(recipe).shape
    points = [
        Point(model="m"),
        *(Point(model="m", r=r, mode="merge", schedule=s) for s in ("constant", "decreasing", "increasing")),
    ]
    assert [cost_of(point, model, shape).macs / 1e9 for point in points] == pytest.approx(gmacs, abs=0.06)


def test_a_threshold_is_for_hybrid_alone_and_axes_are_not_settings():
    model = VideoModel(family="vivit", weights="random:0", reducer={"threshold": 0.4, "order": "index"})
    hybrid, merge = (reduction_of(Point(model="m", r=3, mode=mode), model) for mode in ("hybrid", "merge"))
    assert (hybrid.threshold, merge.threshold, merge.order) == (0.4, 0.0, "index")
    with pytest.raises(ConfigError, match="got seed"):
        reduction_of(Point(model="m"), VideoModel(family="vivit", weights="random:0", reducer={"seed": 1}))
