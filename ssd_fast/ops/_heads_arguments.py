# SPDX-License-Identifier: BSD-3-Clause
"""Checks of the heads that `heads_loss` takes, and what stands in for the maps they predict."""

from torch import Tensor

from ssd_fast.ops._arguments import LOGIT_DTYPES, check_device, describe

__all__ = ["check_heads", "stand_in_maps"]


def check_heads(
    features: list[Tensor],
    delta_weights: list[Tensor],
    delta_biases: list[Tensor | None],
    logit_weights: list[Tensor],
    logit_biases: list[Tensor | None],
) -> None:
    """Raises ValueError unless every level has two 3x3 convolutions that fit its map.

    Args:
        features: one a level, (B, C', H, W).
        delta_weights: one a level, (K, C', 3, 3).
        delta_biases: one a level, (K,) or None.
        logit_weights: one a level, (K, C', 3, 3).
        logit_biases: one a level, (K,) or None.
    """
    levels = len(features)
    named = {
        "delta_weights": (delta_weights, delta_biases),
        "logit_weights": (logit_weights, logit_biases),
    }
    for i, feature in enumerate(features):
        if not isinstance(feature, Tensor) or feature.dim() != 4:
            raise ValueError(f"features[{i}]: expected (B, C', H, W), got {describe(feature)}")
        if feature.dtype not in LOGIT_DTYPES or feature.dtype != features[0].dtype:
            raise ValueError(
                f"features[{i}]: expected float32, float16 or bfloat16, one dtype over all levels,"
                f" got {describe(feature)}"
            )
    for name, (weights, biases) in named.items():
        if not levels or len(weights) != levels or len(biases) != levels:
            raise ValueError(
                f"{name}: expected one with its bias, or None, for each of the features, at least"
                f" one, got {len(weights)} weights, {len(biases)} biases and {levels} features"
            )
        for i, (feature, weight, bias) in enumerate(zip(features, weights, biases, strict=True)):
            if (
                not isinstance(weight, Tensor)
                or weight.dim() != 4
                or weight.shape[1:] != (feature.size(1), 3, 3)
            ):
                raise ValueError(
                    f"{name}[{i}]: expected (K, {feature.size(1)}, 3, 3) for features[{i}],"
                    f" {describe(feature)}, got {describe(weight)}"
                )
            if bias is not None and bias.shape != weight.shape[:1]:
                raise ValueError(
                    f"{name.replace('weights', 'biases')}[{i}]: expected ({weight.size(0)},) or"
                    f" None, got {describe(bias)}"
                )
            check_device(**{f"features[{i}]": feature, f"{name}[{i}]": weight})


def stand_in_maps(features: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """Stand-ins for the heads' maps without memory, for the checks of the loss."""
    return [
        feature.new_empty(()).expand(feature.size(0), weight.size(0), *feature.shape[2:])
        for feature, weight in zip(features, weights, strict=True)
    ]
