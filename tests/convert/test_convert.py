# SPDX-License-Identifier: BSD-3-Clause
"""convert: other implementations' weights give their outputs; broken ones are named in full."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ssd_fast
from ssd_fast import convert
from ssd_fast.convert.layouts import LAYOUTS, shapes

CLASSES = 6
OTHERS = ["amdegroot", "torchvision", "lufficc", "sgrvinod"]


class AmdegrootSSD(nn.Module):
    """SSD300 with the layers, the names and the forward of amdegroot/ssd.pytorch."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        layers: list[nn.Module] = []
        channels = 3
        for width in [64, 64, "M", 128, 128, "M", 256, 256, 256, "C", 512, 512, 512, "M"] + [
            512
        ] * 3:
            if isinstance(width, str):
                layers.append(nn.MaxPool2d(2, 2, ceil_mode=width == "C"))
            else:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
        layers += [nn.MaxPool2d(3, 1, padding=1), nn.Conv2d(512, 1024, 3, padding=6, dilation=6)]
        layers += [nn.ReLU(), nn.Conv2d(1024, 1024, 1), nn.ReLU()]
        self.vgg = nn.ModuleList(layers)
        self.L2Norm = nn.Module()
        self.L2Norm.weight = nn.Parameter(torch.rand(512) * 20)
        sizes = [(1024, 256, 512, 2), (512, 128, 256, 2), (256, 128, 256, 1), (256, 128, 256, 1)]
        self.extras = nn.ModuleList()
        for before, reduced, after, stride in sizes:
            shrink = nn.Conv2d(reduced, after, 3, stride, padding=1 if stride == 2 else 0)
            self.extras += [nn.Conv2d(before, reduced, 1), shrink]
        maps = list(zip((512, 1024, 512, 256, 256, 256), (4, 6, 6, 6, 4, 4), strict=True))
        self.loc = nn.ModuleList(nn.Conv2d(c, a * 4, 3, padding=1) for c, a in maps)
        self.conf = nn.ModuleList(nn.Conv2d(c, a * num_classes, 3, padding=1) for c, a in maps)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 8732, 4) and (B, 8732, C) of a normalised (B, 3, 300, 300)."""
        for layer in self.vgg[:23]:
            x = layer(x)
        norm = x.pow(2).sum(dim=1, keepdim=True).sqrt() + 1e-10
        sources = [self.L2Norm.weight[None, :, None, None] * (x / norm)]
        for layer in self.vgg[23:]:
            x = layer(x)
        sources.append(x)
        for k, layer in enumerate(self.extras):
            x = F.relu(layer(x))
            if k % 2 == 1:
                sources.append(x)
        loc, conf = (
            [m(s).permute(0, 2, 3, 1).flatten(1) for s, m in zip(sources, heads, strict=True)]
            for heads in (self.loc, self.conf)
        )
        return (
            torch.cat(loc, 1).view(len(x), -1, 4),
            torch.cat(conf, 1).view(len(x), -1, self.num_classes),
        )


def random_weights(layout: str, num_classes: int = CLASSES) -> dict[str, Tensor]:
    """Weights of the right names and shapes, expanded from one number each: they cost no memory."""
    names = LAYOUTS[layout].names
    values = {
        names[ours]: torch.rand(()).expand(shape) for ours, shape in shapes(num_classes).items()
    }
    scale = names["backbone.l2norm.weight"]
    values[scale] = values[scale].reshape(LAYOUTS[layout].scale_shape)
    return values


@pytest.fixture(scope="module")
def amdegroot() -> AmdegrootSSD:
    torch.manual_seed(3)
    return AmdegrootSSD(CLASSES).eval()


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.rand(3, 300, 300, generator=torch.Generator().manual_seed(4))


def assert_same_outputs(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert e.std() > 1e-3
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5 * float(e.abs().max()))


def test_amdegroot_gives_its_outputs(amdegroot, image, tmp_path):
    """Through a file, as its training script writes it; mean in 0 to 255 as its transform takes."""
    path = tmp_path / "ssd300.pth"
    torch.save({f"module.{k}": v for k, v in amdegroot.state_dict().items()}, path)
    model = convert.load_ssd300(path)
    mean = torch.tensor([123.0, 117.0, 104.0])[:, None, None]
    with torch.no_grad():
        expected = amdegroot((image * 255 - mean)[None])
        assert_same_outputs(model.head_outputs([image]), expected)
    assert model.priors.equal(ssd_fast.priors.ssd300("voc"))


def test_back_to_amdegroot(amdegroot):
    """Their model loads what is exported, and every tensor is the one that came."""
    weights = amdegroot.state_dict()
    ours = convert.import_state_dict(weights)
    back = convert.export_state_dict(ours, "amdegroot")
    amdegroot.load_state_dict(back)
    assert back.keys() == weights.keys()
    assert all(back[name].equal(weights[name]) for name in weights)


def test_torchvision_gives_its_outputs_both_ways(torchvision, image):
    build = torchvision.models.detection.ssd300_vgg16
    theirs = build(weights=None, weights_backbone=None, num_classes=CLASSES).eval()
    model = convert.load_ssd300(theirs.state_dict())
    assert model.priors.equal(ssd_fast.priors.ssd300("torchvision"))
    with torch.no_grad():
        images, _ = theirs.transform([image])
        outputs = theirs.head(list(theirs.backbone(images.tensors).values()))
        expected = outputs["bbox_regression"], outputs["cls_logits"]
        assert_same_outputs(model.head_outputs([image]), expected)
    back = convert.export_state_dict(model.state_dict(), "torchvision")
    theirs.load_state_dict(back)
    assert all(back[name].equal(value) for name, value in theirs.state_dict().items())


def as_lufficc(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Amdegroot's tensors as lufficc's ssd/modeling names them."""
    prefixes = {
        "vgg": "backbone.vgg",
        "extras": "backbone.extras",
        "L2Norm": "backbone.l2_norm",
        "loc": "box_head.predictor.reg_headers",
        "conf": "box_head.predictor.cls_headers",
    }
    names = {name: name.partition(".") for name in weights}
    return {f"{prefixes[a]}.{b}": weights[name] for name, (a, _, b) in names.items()}


def as_sgrvinod(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Amdegroot's tensors as the modules of sgrvinod's model.py name them."""
    stages = {1: (0, 2), 2: (5, 7), 3: (10, 12, 14), 4: (17, 19, 21), 5: (24, 26, 28)}
    layers = {"vgg.31": "base.conv6", "vgg.33": "base.conv7"}
    for stage, numbers in stages.items():
        layers |= {f"vgg.{n}": f"base.conv{stage}_{i}" for i, n in enumerate(numbers, 1)}
    for k in range(8):
        layers[f"extras.{k}"] = f"aux_convs.conv{8 + k // 2}_{1 + k % 2}"
    for k, level in enumerate(("4_3", "7", "8_2", "9_2", "10_2", "11_2")):
        layers[f"loc.{k}"] = f"pred_convs.loc_conv{level}"
        layers[f"conf.{k}"] = f"pred_convs.cl_conv{level}"
    named = {"rescale_factors": weights["L2Norm.weight"].reshape(1, 512, 1, 1)}
    for theirs, layer in layers.items():
        named |= {f"{layer}.{part}": weights[f"{theirs}.{part}"] for part in ("weight", "bias")}
    return named


@pytest.mark.parametrize("rename", [as_lufficc, as_sgrvinod])
def test_lufficc_and_sgrvinod_give_their_outputs(amdegroot, image, rename):
    """Their networks are amdegroot's by other names, on images normalised in other ways."""
    weights = rename(amdegroot.state_dict())
    assert len(weights) == 71
    model = convert.load_ssd300(weights)
    if rename is as_lufficc:
        mean, std = torch.tensor([123.0, 117.0, 104.0]) / 255, torch.full((3,), 1 / 255)
    else:
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    with torch.no_grad():
        expected = amdegroot(((image - mean[:, None, None]) / std[:, None, None])[None])
        assert_same_outputs(model.head_outputs([image]), expected)


def test_sgrvinod_names_and_shapes():
    """Their layers by the names of their modules, the scale as (1, 512, 1, 1)."""
    weights = random_weights("sgrvinod")
    assert weights["rescale_factors"].shape == (1, 512, 1, 1)
    assert {"base.conv5_3.weight", "aux_convs.conv11_2.bias", "pred_convs.cl_conv9_2.bias"} <= set(
        weights
    )
    ours = convert.import_state_dict(weights)
    assert ours["backbone.conv5.2.conv.weight"].equal(weights["base.conv5_3.weight"])
    assert ours["backbone.extras.3.1.conv.bias"].equal(weights["aux_convs.conv11_2.bias"])
    assert ours["heads.classification.3.bias"].equal(weights["pred_convs.cl_conv9_2.bias"])
    model = convert.load_ssd300(weights)
    assert model.priors.equal(ssd_fast.priors.ssd300("sgrvinod"))
    assert model.transform.image_std == [0.229, 0.224, 0.225]


@pytest.mark.parametrize("layout", OTHERS)
def test_there_and_back(layout):
    weights = random_weights(layout)
    assert convert.layout_of(weights) == layout
    ours = convert.import_state_dict(weights)
    assert convert.layout_of(ours) == "ssd_fast"
    assert {name: tuple(value.shape) for name, value in ours.items()} == shapes(CLASSES)
    back = convert.export_state_dict(ours, layout)
    assert back.keys() == weights.keys()
    assert all(back[name].equal(value) for name, value in weights.items())


def test_shapes_are_those_of_the_model():
    state = ssd_fast.ssd300_vgg16(CLASSES).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == shapes(CLASSES)


@pytest.mark.parametrize(("classes", "priors"), [(21, "voc"), (4, "voc"), (81, "coco")])
def test_priors_follow_the_classes(classes, priors):
    model = convert.load_ssd300(random_weights("lufficc", classes))
    assert (model.num_classes, model.config["priors"]) == (classes, priors)


def test_options_go_over_the_layout():
    options = {"priors": "coco", "score_threshold": 0.3, "image_std": (1.0, 1.0, 1.0)}
    model = convert.load_ssd300(random_weights("amdegroot"), **options)
    assert model.config["priors"] == "coco"
    assert model.score_threshold == 0.3
    assert model.transform.image_std == [1.0] * 3


def test_everything_that_is_wrong_is_listed_at_once():
    weights = random_weights("amdegroot")
    del weights["vgg.31.weight"], weights["loc.4.bias"]
    weights["extras.2.weight"] = torch.zeros(128, 512, 3, 3)
    weights["vgg.40.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match="not an SSD300 on VGG16") as error:
        convert.import_state_dict(weights)
    for part in (
        "missing 'vgg.31.weight'",
        "missing 'loc.4.bias'",
        "'extras.2.weight' is (128, 512, 3, 3), expected (128, 512, 1, 1)",
        "left over 'vgg.40.weight'",
    ):
        assert part in str(error.value)


def test_a_classifier_that_contradicts_itself_is_listed():
    weights = random_weights("torchvision")
    name = "head.classification_head.module_list.2.bias"
    weights[name] = torch.zeros(6 * (CLASSES + 1))
    with pytest.raises(ValueError, match=re.escape(f"{name!r} is (42,), expected (36,)")):
        convert.import_state_dict(weights)


def test_another_number_of_classes_says_what_to_do():
    weights = random_weights("amdegroot")
    with pytest.raises(
        ValueError, match=r"num_classes: the checkpoint has 6.*keep_classifier=True"
    ):
        convert.load_ssd300(weights, num_classes=4)
    model = ssd_fast.ssd300_vgg16(4)
    with pytest.raises(ValueError, match=r"have 6 classes.*and the model 4.*keep_classifier=True"):
        convert.load_weights(model, weights)


def test_fine_tuning_keeps_the_classifier():
    weights = random_weights("amdegroot")
    model = ssd_fast.ssd300_vgg16(4)
    own = [layer.weight.clone() for layer in model.heads.classification]
    assert convert.load_weights(model, weights, keep_classifier=True) is model
    assert model.backbone.conv1[0].conv.weight.equal(weights["vgg.0.weight"])
    assert model.heads.regression[0].weight.equal(weights["loc.0.weight"])
    assert all(a.equal(b.weight) for a, b in zip(own, model.heads.classification, strict=True))


def test_a_slim_model_is_refused():
    model = ssd_fast.ssd300_vgg16(CLASSES, width=0.125)
    with pytest.raises(
        ValueError, match=r"expected ssd300_vgg16 of width 1.*backbone.conv1.0.conv"
    ):
        convert.load_weights(model, random_weights("amdegroot"))


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("base_net.0.weight", "qfgaohao's SSD"),
        ("feature_extractor.feature_provider.0.weight", "NVIDIA's SSD300, a ResNet"),
        ("backbone.conv1.0.norm.weight", "norm=True"),
    ],
)
def test_networks_that_are_no_vgg_ssd300_are_refused_by_name(key, what):
    with pytest.raises(ValueError, match=what):
        convert.layout_of({key: torch.zeros(1)})


def test_unknown_names_and_layouts():
    with pytest.raises(ValueError, match=r"expected an SSD300 on VGG16 as .*got names like 'fc.w'"):
        convert.layout_of({"fc.w": torch.zeros(1)})
    with pytest.raises(ValueError, match="layout: expected one of 'ssd_fast', 'amdegroot'"):
        convert.export_state_dict(random_weights("ssd_fast"), "caffe")
