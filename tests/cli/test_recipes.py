# SPDX-License-Identifier: BSD-3-Clause
"""Recipes are options of the command, and typed options go on top of them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ssd_fast.cli.recipes import RECIPES, recipe_options
from ssd_fast.cli.train import Train
from ssd_fast.engine.checkpoint import load_checkpoint


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_options(name: str):
    options = Train(**recipe_options(["--data", "shapes", "--recipe", name]))
    assert options.recipe == name
    assert options == Train(**recipe_options([f"--recipe={name}"]))


def test_the_papers_learning_rates():
    from ssd_fast.engine.optimizer import learning_rate_factor
    from ssd_fast.engine.options import TrainingOptions

    recipe = RECIPES["paper-voc"]
    names = ("steps", "schedule", "milestones", "gamma", "warmup", "learning_rate")
    options = TrainingOptions(**{name: recipe[name] for name in names})
    rates = [
        options.learning_rate * learning_rate_factor(step, options)
        for step in (0, 39_999, 40_000, 49_999, 50_000, 59_999)
    ]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])


def test_no_recipe_is_no_option():
    assert recipe_options([]) == {}
    assert recipe_options(["--recipe"]) == {}
    assert recipe_options(["--recipe", "mine"]) == {}


def test_typed_epochs_go_before_a_recipes_steps():
    assert recipe_options(["--recipe", "paper-voc"])["steps"] == 60_000
    assert "steps" not in recipe_options(["--recipe", "paper-voc", "--epochs", "3"])
    assert "steps" not in recipe_options(["--epochs=3", "--recipe=paper-voc"])


def test_torchvisions_recipe_freezes_what_was_trained():
    recipe = ["--recipe", "torchvision-coco"]
    assert recipe_options(recipe)["freeze"] == 1
    assert recipe_options([*recipe, "--backbone-weights", "vgg.pth"])["freeze"] == 1
    for none in (["--backbone-weights", "none"], ["--backbone-weights=none"]):
        assert "freeze" not in recipe_options([*recipe, *none])


def test_random_weights_are_not_frozen(ssd_fast: Callable, tmp_path: Path):
    command = ("train", "--data", "shapes", "--output", tmp_path)
    for wrong in (
        ("--recipe", "finetune"),
        ("--freeze", 2),
        ("--freeze", 2, "--backbone-weights", "none"),
    ):
        result = ssd_fast(*command, *wrong)
        assert result.status == 2
        assert "--freeze: 2 stages would keep random weights; name a detec" in result.err
        assert "--backbone-weights" in result.err


def test_help_shows_the_recipe(ssd_fast: Callable, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        ssd_fast("train", "--recipe", "torchvision-coco", "--help")
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "(default: torchvision-coco)" in text
    assert "(default: 0.002)" in text
    assert "(default: 120.0)" in text


def test_typed_options_go_on_top(ssd_fast: Callable, voc: Path, tmp_path: Path):
    typed = ("--backbone-weights", "none", "--width", 0.03, "--batch-size", 2, "--steps", 2)
    command = ("train", "--data", f"voc:{voc}", "--recipe", "paper-voc", *typed)
    result = ssd_fast(*command, "--precision", "float32", "--output", tmp_path)
    assert result.status == 0, result.err
    options = load_checkpoint(tmp_path / "checkpoint.pt")["options"]
    assert (options["recipe"], options["width"], options["steps"]) == ("paper-voc", 0.03, 2)
    assert (options["optimizer"], options["average"]) == ("sgd", 0.0)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["learning_rate"] for row in rows[:2]] == pytest.approx([1e-3, 1e-4])
    # A recipe without a limit of the gradient: JSON has no infinity.
    metrics = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert metrics["options"]["clip_norm"] == "inf"
    assert ssd_fast("train", "--resume", "--output", tmp_path).status == 0
    again = ssd_fast("train", "--resume", "--output", tmp_path, "--recipe", "finetune")
    assert "--recipe: the run in" in again.err


def test_weights_that_do_not_load_are_one_line(ssd_fast: Callable, voc: Path, tmp_path: Path):
    command = ("train", "--data", f"voc:{voc}", "--recipe", "finetune", "--output", tmp_path)
    result = ssd_fast(*command, "--backbone-weights", tmp_path / "missing.safetensors")
    assert result.status == 2
    (line,) = result.err.splitlines()
    assert "no weights at" in line
    result = ssd_fast(*command, "--freeze", 0, "--precision", "float16")
    assert result.status == 2
    assert "precision: float16 needs a GPU, not cpu; take bfloat16 or float32" in result.err
