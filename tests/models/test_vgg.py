# SPDX-License-Identifier: BSD-3-Clause
"""The VGG16 of SSD against the paper: every layer, map and parameter."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from ssd_fast.models import ssd300_vgg16, ssd512_vgg16
from ssd_fast.models.heads import concatenate_maps
from ssd_fast.models.vgg import EXTRAS_512, VGG16, L2Norm


def maps_of(backbone, size):
    """Shapes of the backbone's maps, without computing them."""
    image = torch.empty(1, 3, size, size, device="meta")
    return [tuple(x.shape[1:]) for x in backbone.to("meta")(image)]


def test_maps_of_ssd300():
    expected = [(512, 38), (1024, 19), (512, 10), (256, 5), (256, 3), (256, 1)]
    assert maps_of(VGG16(), 300) == [(c, s, s) for c, s in expected]


def test_maps_of_ssd512():
    expected = [(512, 64), (1024, 32), (512, 16), (256, 8), (256, 4), (256, 2), (256, 1)]
    assert maps_of(VGG16(EXTRAS_512), 512) == [(c, s, s) for c, s in expected]


def test_boxes_of_ssd300():
    with torch.device("meta"):
        model = ssd300_vgg16(21)
        deltas, logits = model.heads(model.backbone(torch.empty(1, 3, 300, 300)))
    assert [x[0].numel() // 4 for x in deltas] == [5776, 2166, 600, 150, 36, 4]
    assert [x[0].numel() // 21 for x in logits] == [5776, 2166, 600, 150, 36, 4]
    assert model.priors.shape == (8732, 4)


def test_boxes_of_ssd512():
    with torch.device("meta"):
        model = ssd512_vgg16(21)
        deltas, _ = model.heads(model.backbone(torch.empty(1, 3, 512, 512)))
    assert sum(x[0].numel() // 4 for x in deltas) == 24564 == len(model.priors)


@pytest.mark.parametrize(("classes", "parameters"), [(21, 26_285_486), (91, 35_641_826)])
def test_parameters_of_ssd300(classes, parameters):
    with torch.device("meta"):
        model = ssd300_vgg16(classes)
    assert len(list(model.parameters())) == 71
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def describe(conv):
    square = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    return conv.in_channels, conv.out_channels, *(x for x, _ in square)


def test_layers_of_the_paper():
    backbone = VGG16()
    convs = [describe(m) for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    channels = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    assert convs[:13] == [(i, o, 3, 1, 1, 1) for i, o in pairwise(channels)]
    assert convs[13:15] == [(512, 1024, 3, 1, 6, 6), (1024, 1024, 1, 1, 0, 1)]
    assert convs[15:] == [
        (1024, 256, 1, 1, 0, 1),
        (256, 512, 3, 2, 1, 1),
        (512, 128, 1, 1, 0, 1),
        (128, 256, 3, 2, 1, 1),
        (256, 128, 1, 1, 0, 1),
        (128, 256, 3, 1, 0, 1),
        (256, 128, 1, 1, 0, 1),
        (128, 256, 3, 1, 0, 1),
    ]
    pools = [m for m in backbone.modules() if isinstance(m, nn.MaxPool2d)]
    assert [(p.kernel_size, p.stride, p.padding, p.ceil_mode) for p in pools] == [
        (2, 2, 0, False),
        (2, 2, 0, False),
        (2, 2, 0, True),
        (2, 2, 0, False),
        (3, 1, 1, False),
    ]
    assert sum(isinstance(m, nn.ReLU) for m in backbone.modules()) == len(convs)


def test_weights_at_the_start():
    model = ssd300_vgg16(5, width=0.25)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
    assert (model.backbone.l2norm.weight == 20).all()
    for conv in (model.heads.classification[1], model.backbone.conv6.conv):
        fans = (conv.in_channels + conv.out_channels) * 9
        assert conv.weight.abs().max().item() == pytest.approx((6 / fans) ** 0.5, rel=1e-2)


@pytest.mark.parametrize(("width", "channels"), [(1.0, 64), (0.5, 32), (0.125, 8), (0.01, 8)])
def test_width_scales_every_layer(width, channels):
    with torch.device("meta"):
        backbone = VGG16(width=width)
    assert backbone.conv1[0].conv.out_channels == channels
    convs = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    assert all(conv.out_channels % 8 == 0 for conv in convs)


def test_norm_replaces_the_biases():
    with torch.device("meta"):
        model = ssd300_vgg16(21, norm=True)
    convs = [m for m in model.backbone.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(convs) == len(norms) == 23
    assert all(conv.bias is None for conv in convs)
    assert all(head.bias is not None for head in model.heads.regression)


@pytest.mark.parametrize("width", [0, -1.0, float("nan"), float("inf")])
def test_bad_width(width):
    with pytest.raises(ValueError, match="width: expected a positive number"):
        VGG16(width=width)


def test_l2norm_is_the_formula():
    layer = L2Norm(8)
    with torch.no_grad():
        layer.weight.uniform_(1, 30)
    x = torch.randn(2, 8, 3, 5)
    expected = x / x.square().sum(dim=1, keepdim=True).sqrt() * layer.weight.view(1, 8, 1, 1)
    torch.testing.assert_close(layer(x), expected)


def test_l2norm_of_nothing_is_nothing():
    layer = L2Norm(8)
    x = torch.zeros(1, 8, 2, 2, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert not y.any()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [True, False])
def test_l2norm_overflows_in_no_dtype(dtype, autocast):
    layer = L2Norm(8).to(torch.float32 if autocast else dtype)
    x = torch.full((1, 8, 1, 1), 3e4, dtype=dtype)  # its squares are infinite in float16
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = layer(x)
    assert y.dtype == dtype
    expected = torch.full((1, 8, 1, 1), 20 / 8**0.5)
    torch.testing.assert_close(y.float(), expected, rtol=1e-2, atol=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_concatenated_rows_follow_the_maps(memory_format):
    maps = [torch.randn(2, 12, 3, 2), torch.randn(2, 9, 1, 1)]
    rows = concatenate_maps([x.to(memory_format=memory_format) for x in maps], 3)
    assert rows.shape == (2, 3 * 2 * 4 + 3, 3)
    row = 0
    for x in maps:
        for y in range(x.shape[2]):
            for column in range(x.shape[3]):
                for a in range(x.shape[1] // 3):
                    assert rows[:, row].equal(x[:, 3 * a : 3 * a + 3, y, column])
                    row += 1
