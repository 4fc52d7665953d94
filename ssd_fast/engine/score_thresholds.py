# SPDX-License-Identifier: BSD-3-Clause
"""score_thresholds: from which score on a detection is worth showing, by the F1 measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssd_fast.data.default_device import cpu_by_default
from ssd_fast.engine.average_precision import PrecisionRecall

__all__ = ["ScoreThresholds", "choose_thresholds"]

_STEPS = 1000


@dataclass(frozen=True)
class ScoreThresholds:
    """F1, the harmonic mean of precision and recall, at each threshold, and where it is largest.

    Attributes:
        grid: (G,) float64, the thresholds: 0, 0.001, ..., 1.
        precision: (C - 1, G) float64, 0 where nothing is left.
        recall: (C - 1, G) float64, NaN for a class without objects.
        f1: (C - 1, G) float64, NaN for a class without objects.
        per_class: (C - 1,) int64, index in `grid` of the best threshold of each class.
        overall: index in `grid` of the threshold at which the mean F1 of the classes is largest.
    """

    grid: Tensor
    precision: Tensor
    recall: Tensor
    f1: Tensor
    per_class: Tensor
    overall: int

    @property
    def mean_f1(self) -> Tensor:
        """(G,) float64, the mean over the classes that have objects."""
        return self.f1.nanmean(0)


@cpu_by_default
def choose_thresholds(curves: Sequence[PrecisionRecall]) -> ScoreThresholds:
    """Finds the score thresholds with the largest F1.

    Where several thresholds in a row are equally good the middle one is taken, the one that other
    images are least likely to spoil.

    Args:
        curves: C - 1 precision-recall curves, as in `AveragePrecision.curves`.

    Returns:
        The thresholds.

    Raises:
        ValueError: there is no curve.
    """
    if not curves:
        raise ValueError("curves: expected one for each class, got none")
    grid = torch.arange(_STEPS + 1, dtype=torch.float64) / _STEPS
    precision, recall = [], []
    for curve in curves:
        # How many detections have at least each score; the curve's first point is that of one.
        count = torch.searchsorted(-curve.scores, -grid, right=True)
        precision.append(torch.cat([grid.new_zeros(1), curve.precision])[count])
        none = grid.new_full((1,), 0.0 if curve.num_objects else torch.nan)
        recall.append(torch.cat([none, curve.recall])[count])
    p, r = torch.stack(precision), torch.stack(recall)
    f1 = torch.where(p + r == 0, 0.0, 2 * p * r / (p + r))
    per_class = torch.tensor([_best(row) for row in f1])
    return ScoreThresholds(grid, p, r, f1, per_class, _best(f1.nanmean(0)))


def _best(f1: Tensor) -> int:
    """The middle of the first run of largest values; the middle of all for a class without any."""
    good = (f1 >= f1.nan_to_num(0.0).max() - 1e-12) | f1.isnan()
    start = int(good.nonzero()[0])
    run = (~good[start:]).nonzero()
    stop = start + int(run[0]) if run.numel() else good.numel()
    return (start + stop - 1) // 2
