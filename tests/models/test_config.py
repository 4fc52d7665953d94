# SPDX-License-Identifier: BSD-3-Clause
"""SSD.config: all options as JSON, and the same model from them."""

import json
from dataclasses import replace

import pytest
import torch

from ssd_fast.models import SSD, ssd300_vgg16, ssd512_vgg16
from ssd_fast.priors import SSD300, ssd300

CLASSES = 4
OTHER_GRID = replace(SSD300["voc"], aspect_ratios=((1.5,),) * 6)


def slim(**options):
    torch.manual_seed(0)
    return ssd300_vgg16(CLASSES, width=0.125, norm=True, **options)


@pytest.mark.parametrize("priors", ["coco", OTHER_GRID, ssd300("sgrvinod")], ids=type)
def test_config_builds_the_model_again(priors):
    loss = {"min_negatives": 3, "beta": 0.5, "class_weights": [1.0, 2.0, 0.5, 1.0]}
    options = {"top_k": 7, "image_std": [0.25] * 3, "loss": loss}
    options |= {"nms": "soft-gaussian", "sigma": 0.3}
    model = slim(priors=priors, **options).eval()
    again = SSD.from_config(json.loads(json.dumps(model.config)))
    assert again.config == model.config
    assert again.priors.equal(model.priors)
    assert again.loss.options == model.loss.options
    again.load_state_dict(model.state_dict())
    images = [torch.rand(3, 120, 200)]
    torch.testing.assert_close(again.eval()(images), model(images))


def test_a_config_on_the_meta_device_keeps_its_numbers():
    """Priors and class weights that it holds as numbers are data, as a preset's are."""
    weights = {"class_weights": [0.5, 1.0, 2.0, 4.0]}
    model = slim(priors=ssd300("coco"), loss=weights)
    with torch.device("meta"):
        empty = SSD.from_config(json.loads(json.dumps(model.config)))
    empty.to_empty(device="cpu")
    assert empty.priors.equal(model.priors)
    assert empty.loss.class_weights.tolist() == weights["class_weights"]


def test_priors_that_the_meta_device_lost_reach_neither_detections_nor_a_config():
    with torch.device("meta"):
        model = slim(priors=torch.empty(8732, 4)).eval()
    model.to_empty(device="cpu")
    for use in (lambda: model(torch.rand(1, 3, 300, 300)), lambda: model.config):
        with pytest.raises(ValueError, match="priors: made on the meta device"):
            use()


def test_config_of_ssd512():
    with torch.device("meta"):
        assert SSD.from_config(ssd512_vgg16(3, width=0.125).config).transform.size == 512


def test_config_needs_an_architecture():
    with pytest.raises(ValueError, match="config: expected an architecture of 'ssd300_vgg16', "):
        SSD.from_config({"num_classes": 3})
