# SPDX-License-Identifier: BSD-3-Clause
"""The picture of a run is drawn from whatever a run can leave."""

import io

import pytest
import torch

from ssd_fast.engine.evaluation import Evaluation, score_detections
from ssd_fast.engine.plots import plain, plot_training

NAMES = ("cat", "dog")


def evaluation(objects: int, names: tuple[str, ...] = NAMES) -> Evaluation:
    truth = {
        "boxes": torch.rand(objects, 4).cumsum(1),
        "labels": torch.ones(objects, dtype=torch.int64),
    }
    return score_detections([{**truth, "scores": torch.rand(objects)}], [truth], names)


@pytest.mark.parametrize("steps", [0, 1, 30])
@pytest.mark.parametrize("objects", [0, 4])
def test_a_run_is_drawn(steps: int, objects: int):
    from PIL import Image

    rows = [{"step": i + 1, "box_loss": 2.0 / (i + 1), "class_loss": 3.0} for i in range(steps)]
    rows += [{"step": 7, "box_loss": None, "class_loss": None}, {"step": 9, "map_50": 0.5}]
    rows += [{"step": 8, "box_loss": 1.0, "class_loss": None}]
    picture = Image.open(io.BytesIO(plot_training(rows, evaluation(objects))))
    assert picture.format == "PNG"
    assert picture.width > 1000
    assert len(picture.convert("L").getcolors(1 << 20)) > 10


def test_validations_on_the_way_are_drawn():
    """From the second on: one is a point, which the other half of the picture holds anyway."""
    rows = [{"step": i, "box_loss": 1.0, "class_loss": 2.0} for i in range(10)]
    once = [*rows, {"step": 4, "map_50": 0.5}]
    result = evaluation(4)
    assert plot_training(once, result) == plot_training(rows, result)
    assert plot_training([*once, {"step": 8, "map_50": 0.7}], result) != plot_training(rows, result)


@pytest.mark.parametrize("name", [r"$5 \foo$", "$5 $6", r"a \$5 \foo$"])
def test_a_name_is_no_formula(name: str):
    from matplotlib.cbook import is_math_text

    assert not is_math_text(plain(name))
    assert plot_training([], evaluation(4, (name, "dog")))
