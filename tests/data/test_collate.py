# SPDX-License-Identifier: BSD-3-Clause
import torch

from ssd_fast.data import collate


def test_images_and_targets_stay_what_they_are() -> None:
    samples = [(torch.zeros(3, 4, 5 + i), {"boxes": torch.zeros(i, 4)}) for i in range(3)]
    images, targets = collate(samples)
    assert all(image is sample[0] for image, sample in zip(images, samples, strict=True))
    assert all(target is sample[1] for target, sample in zip(targets, samples, strict=True))


def test_no_samples_are_no_images() -> None:
    assert collate([]) == ([], [])
