# SPDX-License-Identifier: BSD-3-Clause
"""The memory that gradients share and leave to the next backward: csrc/cpu/gradient_memory.h."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from ssd_fast import _C, ops, priors
from ssd_fast.testing import Objects, as_maps, random_objects, seeded, trained_outputs

PRIORS = priors.ssd300()
CELLS = [(4, 38, 38), (6, 19, 19), (6, 10, 10), (6, 5, 5), (4, 3, 3), (4, 1, 1)]
SMALL, LARGE = 1, 6  # images; the gradients of 1 are kept in the caches, those of 6 are not


class Batch:
    """Outputs of a network for `images`, of which each has objects."""

    def __init__(self, images: int, seed: int = 0) -> None:
        self.objects = random_objects(images, seeded(seed))
        self.deltas, self.logits = trained_outputs(self.objects, PRIORS, seeded(seed + 1))

    def gradients(self) -> tuple[Tensor, ...]:
        return gradients_of([self.deltas], [self.logits], self.objects)

    def gradients_of_image(self, image: int) -> tuple[Tensor, ...]:
        return gradients_of_image(image, self.deltas, self.logits, self.objects)


def gradients_of(
    deltas: list[Tensor], logits: list[Tensor], objects: Objects, priors: Tensor = PRIORS
) -> tuple[Tensor, ...]:
    deltas, logits = ([x.detach().requires_grad_() for x in maps] for maps in (deltas, logits))
    box, cls, _ = ops.multibox_loss(deltas, logits, priors, *objects, normalizer="none")
    return torch.autograd.grad([box, cls], [*deltas, *logits])


def gradients_of_image(
    image: int, deltas: Tensor, logits: Tensor, objects: Objects, priors: Tensor = PRIORS
) -> tuple[Tensor, ...]:
    begin, end = objects.offsets[image : image + 2].tolist()
    own = Objects(
        objects.boxes[begin:end], objects.labels[begin:end], torch.tensor([0, end - begin])
    )
    here = slice(image, image + 1)
    return gradients_of([deltas[here]], [logits[here]], own, priors)


@pytest.mark.parametrize("images", [SMALL, LARGE])
def test_a_changed_gradient_leaves_nothing_to_the_next(images: int) -> None:
    batch = Batch(images)
    first = batch.gradients()
    expected = [gradient.clone() for gradient in first]
    assert 0 < int((expected[1] != 0).sum()) < expected[1].numel() / 10
    for gradient in first:
        gradient.fill_(7.0)
    del first, gradient
    for _ in range(3):
        for actual, same in zip(batch.gradients(), expected, strict=True):
            assert actual.equal(same)
            actual.mul_(float("nan"))


@pytest.mark.parametrize("images", [SMALL, LARGE])
def test_gradients_that_live_share_no_memory(images: int) -> None:
    batch = Batch(images)
    alive = [batch.gradients() for _ in range(3)]
    expected = [gradient.clone() for gradient in alive[0]]
    for gradient in alive[1]:
        gradient.fill_(7.0)
    for kept in (alive[0], alive[2], batch.gradients()):
        assert all(map(torch.equal, kept, expected))


def test_a_part_of_a_gradient_outlives_the_rest() -> None:
    batch = Batch(LARGE)
    part = batch.gradients()[1][3]
    expected = part.clone()
    for _ in range(2):
        for gradient in batch.gradients():
            gradient.fill_(7.0)
    assert part.equal(expected)


def test_batches_of_any_size_follow_each_other() -> None:
    for images in (1, 6, 2, 5, 1):
        batch = Batch(images, seed=images)
        for gradients in (batch.gradients(), batch.gradients()):
            for image in range(images):
                for alone, whole in zip(batch.gradients_of_image(image), gradients, strict=True):
                    assert alone[0].equal(whole[image])


@pytest.mark.parametrize("name", _C.instruction_sets())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("images", "rows", "classes"),
    [(11, 8731, 21), (6, 301, 1204), (13, 5001, 33)],
    ids=["no whole lines", "rows longer than a page", "33 classes"],
)
def test_a_large_gradient_is_that_of_each_image(
    images: int,
    rows: int,
    classes: int,
    dtype: torch.dtype,
    name: str,
    request: pytest.FixtureRequest,
) -> None:
    """Written in one stream, zeros and rows, over whatever was there; images alone are not."""
    request.addfinalizer(lambda: _C.set_instruction_set(_C.instruction_sets()[-1]))
    _C.set_instruction_set(name)
    priors = PRIORS[:: len(PRIORS) // rows][:rows].contiguous()
    objects = random_objects(images, seeded(images), classes=classes)
    deltas = torch.randn(images, rows, 4, generator=seeded(0)).to(dtype)
    logits = torch.randn(images, rows, classes, generator=seeded(1)).to(dtype)
    for _ in range(2):
        whole = gradients_of([deltas], [logits], objects, priors)
        for image in range(images):
            alone = gradients_of_image(image, deltas, logits, objects, priors)
            assert alone[0].equal(whole[0][image : image + 1])
            assert alone[1].equal(whole[1][image : image + 1])
        assert 0 < int((whole[1] != 0).any(dim=2).sum()) < images * rows
        for gradient in whole:
            gradient.fill_(float("nan"))
        del whole, gradient  # now the memory is free for the next, and full of NaN


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_maps_keep_their_memory_format(memory_format: torch.memory_format) -> None:
    batch = Batch(LARGE)
    maps = [
        [x.contiguous(memory_format=memory_format) for x in as_maps(rows, CELLS)]
        for rows in (batch.deltas, batch.logits)
    ]
    expected = [x for rows in batch.gradients() for x in as_maps(rows, CELLS)]
    for _ in range(2):
        actual = gradients_of(*maps, batch.objects)
        for gradient, level, same in zip(actual, (*maps[0], *maps[1]), expected, strict=True):
            assert gradient.stride() == level.stride()
            assert gradient.equal(same)
            gradient.fill_(float("nan"))
        del actual, gradient  # now the memory is free for the next, and full of NaN


def test_rows_with_gaps_have_dense_gradients() -> None:
    batch = Batch(LARGE)
    logits = torch.zeros(LARGE, len(PRIORS), 32)[..., :21].copy_(batch.logits)
    for _ in range(2):
        actual = gradients_of([batch.deltas], [logits], batch.objects)
        assert actual[1].is_contiguous()
        assert all(map(torch.equal, actual, batch.gradients()))


def test_threads_take_turns() -> None:
    batches = [Batch(2, seed=seed) for seed in range(4)]
    expected = [[gradient.clone() for gradient in batch.gradients()] for batch in batches]

    def repeat(index: int) -> bool:
        same = True
        for _ in range(25):
            gradients = batches[index].gradients()
            same &= all(map(torch.equal, gradients, expected[index]))
            gradients[1].fill_(7.0)
        return same

    with ThreadPoolExecutor(len(batches)) as pool:
        assert all(pool.map(repeat, range(len(batches))))
