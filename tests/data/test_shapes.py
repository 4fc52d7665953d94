# SPDX-License-Identifier: BSD-3-Clause
import torch

from ssd_fast.data import ShapesDataset


def test_a_scene_depends_on_seed_and_index_alone() -> None:
    scenes = ShapesDataset(6, seed=3)
    forward = [scenes[i] for i in range(6)]
    again = ShapesDataset(100, seed=3)
    for i in (5, 2, 0):
        image, target = again[i]
        assert torch.equal(image, forward[i][0])
        assert torch.equal(target["boxes"], forward[i][1]["boxes"])
    assert not torch.equal(ShapesDataset(6, seed=4)[0][0], forward[0][0])
