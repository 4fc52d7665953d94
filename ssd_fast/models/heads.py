# SPDX-License-Identifier: BSD-3-Clause
"""The prediction layers of SSD, and the flat view of what they predict."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = [
    "HeadParameters",
    "MultiBoxHeads",
    "concatenate_maps",
    "is_plain",
    "logit_of",
    "plain_parameters",
    "xavier_uniform",
]


# As they were when this module was imported: tools replace them for all convolutions at once.
_CONVOLVE = nn.Conv2d.forward, nn.Conv2d._conv_forward


class MultiBoxHeads(nn.Module):
    """3x3 convolutions that predict, at each cell of each map, 4 offsets and C scores a box.

    Channel `a * K + k` of a map is number k of the cell's box a (SSD paper, section 2.1). The maps
    go to the loss and to detection as they are.

    Args:
        in_channels: of each feature map.
        boxes_per_cell: A of each feature map.
        num_classes: C, background included.
        class_prior: of a classification by sigmoids, the probability that each class begins with:
            weights from a normal distribution of deviation 0.01 and a bias of -log((1 - p) / p), as
            RetinaNet starts (Lin et al., 2017, arXiv:1708.02002, section 4.1). None is for softmax.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        boxes_per_cell: Sequence[int],
        num_classes: int,
        *,
        class_prior: float | None = None,
    ) -> None:
        super().__init__()
        levels = list(zip(in_channels, boxes_per_cell, strict=True))
        self.regression = nn.ModuleList(nn.Conv2d(c, a * 4, 3, padding=1) for c, a in levels)
        self.classification = nn.ModuleList(
            nn.Conv2d(c, a * num_classes, 3, padding=1) for c, a in levels
        )
        xavier_uniform(self)
        if class_prior is not None:
            for convolution in self.classification:
                nn.init.normal_(convolution.get_parameter("weight"), std=0.01)
                nn.init.constant_(convolution.get_parameter("bias"), logit_of(class_prior))

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Offsets and scores of every level.

        Args:
            maps: one (B, C', H, W) a level.

        Returns:
            deltas, a list of (B, A * 4, H, W), and logits, a list of (B, A * C, H, W).
        """
        deltas = [conv(x) for conv, x in zip(self.regression, maps, strict=True)]
        logits = [conv(x) for conv, x in zip(self.classification, maps, strict=True)]
        return deltas, logits


def logit_of(probability: float) -> float:
    """The logit whose sigmoid is a probability between 0 and 1."""
    return math.log(probability / (1 - probability))


class HeadParameters(NamedTuple):
    """What `ssd_fast.ops.heads_loss` takes of the heads: a list over the levels of each."""

    delta_weights: list[Tensor]
    delta_biases: list[Tensor | None]
    logit_weights: list[Tensor]
    logit_biases: list[Tensor | None]


def plain_parameters(heads: nn.Module) -> HeadParameters | None:
    """The heads' weights and biases, if calling the heads does nothing but convolve with them.

    Args:
        heads: of a model, as they are now: users hook, parametrise and replace modules.

    Returns:
        None where anything else is done, so that somebody must call the heads.
    """
    if not is_plain(heads, MultiBoxHeads):
        return None
    parameters = HeadParameters([], [], [], [])
    kinds = (heads.regression, *parameters[:2]), (heads.classification, *parameters[2:])
    for convolutions, weights, biases in kinds:
        for convolution in convolutions:  # type: ignore[union-attr]
            if not _is_plain_convolution(convolution):
                return None
            weights.append(convolution.weight)
            biases.append(convolution.bias)
    dtypes = {x.dtype for kind in parameters for x in kind if x is not None}
    return parameters if len(dtypes) <= 1 else None


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling the module runs the `forward` of that class and nothing else."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return (
        type(module) is kind
        and "forward" not in module.__dict__
        and module._compiled_call_impl is None
        and not any(hooks)
        and not nn.modules.module._has_any_global_hook()
    )


def _is_plain_convolution(module: nn.Module) -> bool:
    """Whether it is a 3x3 convolution whose parameters are ordinary tensors."""
    return (
        isinstance(module, nn.Conv2d)
        and is_plain(module, nn.Conv2d)
        and "_conv_forward" not in module.__dict__
        and (nn.Conv2d.forward, nn.Conv2d._conv_forward) == _CONVOLVE
        and module.kernel_size == (3, 3)
        and module.stride == module.padding == module.dilation == (1, 1)
        and module.groups == 1
        and module.padding_mode == "zeros"
        and type(module.weight) in (Tensor, nn.Parameter)
        and type(module.bias) in (Tensor, nn.Parameter, type(None))
    )


def concatenate_maps(maps: Sequence[Tensor], columns: int) -> Tensor:
    """Heads' maps as one tensor, a row for each prior: a permutation and a copy.

    Args:
        maps: one (B, A * K, H, W) a level.
        columns: K, 4 for deltas, the number of classes for logits.

    Returns:
        (B, P, K), rows in the order level, row, column, box, as the priors'.
    """
    rows = [torch.unflatten(x, 1, (-1, columns)).permute(0, 3, 4, 1, 2).flatten(1, 3) for x in maps]
    return torch.cat(rows, dim=1)


def xavier_uniform(module: nn.Module) -> None:
    """Fills the weights of all convolutions Xavier-uniform and their biases with 0, as Caffe's SSD.

    Args:
        module: whose convolutions.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
