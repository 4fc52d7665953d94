# SPDX-License-Identifier: BSD-3-Clause
"""Evaluation by several processes: each detects in its share, one gets everything."""

from __future__ import annotations

from torch import Tensor

from ssd_fast.data import BrokenSample
from ssd_fast.engine.dataset_items import DetectionDataset
from ssd_fast.engine.distributed import World
from ssd_fast.engine.evaluation import detect_dataset
from ssd_fast.engine.precision import Precision
from ssd_fast.engine.subset import Subset, leave_out
from ssd_fast.models.ssd import SSD

__all__ = ["decodable", "detect_together"]


def decodable(dataset: DetectionDataset, world: World) -> tuple[DetectionDataset, list[str]]:
    """Leaves out the images that do not decode, before an evaluation would stop at them.

    Args:
        dataset: the same in all processes; each decodes a share of it.
        world: the processes.

    Returns:
        The others, in order, and what is wrong with those left out, one line each.

    Raises:
        ValueError: no image decodes.
    """
    found: list[tuple[int, str]] = []
    for index in world.share(len(dataset)):
        try:
            dataset[index]
        except BrokenSample as error:
            found.append((index, str(error)))
    broken = dict(world.share_out(found))
    return leave_out(dataset, broken), [*broken.values()]


def detect_together(
    model: SSD,
    dataset: DetectionDataset,
    world: World,
    *,
    precision: Precision,
    batch_size: int = 16,
) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]] | None:
    """Detects objects in a dataset whose images the processes share out.

    The processes detect in the batches that one alone would make, in turn, and the lists are put
    back into the dataset's order: no image counts twice, and the result is that of one process.

    Args:
        model: equal in all processes but for running statistics, which process 0 gives to all;
            put in evaluation mode.
        dataset: the same in all processes.
        world: the processes.
        precision: arithmetic of the model.
        batch_size: images at a time.

    Returns:
        Detections and targets, one dict an image each, in process 0; None in the others.

    Raises:
        BrokenSample: an image does not decode.
        ValueError: a batch size below 1, or as for `read_truth`.
    """
    indices = world.batches(len(dataset), batch_size)
    world.copy_buffers(model)
    detections: list[dict[str, Tensor]] = []
    targets: list[dict[str, Tensor]] = []
    share = Subset(dataset, indices)
    for found, there in detect_dataset(model, share, precision=precision, batch_size=batch_size):
        detections += found
        targets += there
    gathered = world.gather(list(zip(indices, detections, targets, strict=True)))
    if not world.is_main:
        return None
    rows = sorted((row for rows in gathered for row in rows), key=lambda row: row[0])
    return [found for _, found, _ in rows], [there for _, _, there in rows]
