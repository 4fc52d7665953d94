# SPDX-License-Identifier: BSD-3-Clause
"""Run by test_distributed.py under torchrun: what two processes do together, as JSON."""

import json
import math
import os
import signal
import sys
from pathlib import Path

import torch

from ssd_fast.data import ShapesDataset
from ssd_fast.engine.distributed import World, process_group
from ssd_fast.engine.distributed_evaluation import detect_together
from ssd_fast.engine.evaluation import Evaluation, score_detections
from ssd_fast.engine.initialisation import quiet_heads
from ssd_fast.engine.precision import choose_precision
from ssd_fast.engine.trainer import Trainer, TrainingOptions
from ssd_fast.models import SSD, ssd300_vgg16
from ssd_fast.targets import Targets

CPU = torch.device("cpu")
FLOAT32 = choose_precision(CPU, "float32")
# SGD, and steps that a norm limits: AdamW divides a small gradient by itself and mining jumps, so
# both would make the rounding of a sum of 8 and of two sums of 4 visible.
OPTIONS = {"steps": 3, "optimizer": "sgd", "learning_rate": 1e-3, "warmup": 1, "clip_norm": 1.0}


def model() -> SSD:
    torch.manual_seed(0)
    made = ssd300_vgg16(4, width=0.03)
    quiet_heads(made)
    return made


def trained(world: World, batch_size: int) -> Trainer:
    options = TrainingOptions(batch_size=batch_size, **OPTIONS)
    trainer = Trainer(model(), ShapesDataset(20), options, precision=FLOAT32, world=world)
    trainer.losses = [(report.box_loss, report.class_loss) for report in trainer.run()]
    return trainer


def against_one(together: Trainer, batch_size: int) -> dict[str, float]:
    """How far a run of several processes is from one of one process."""
    alone = trained(World(CPU), batch_size)
    losses = zip(sum(together.losses, ()), sum(alone.losses, ()), strict=True)
    return {
        "parameters": difference(together.model, alone.model),
        "losses": max(abs(a - b) / b for a, b in losses),
        "moved": difference(together.model, model()),
    }


def difference(mine: SSD, theirs: SSD) -> float:
    pairs = zip(mine.parameters(), theirs.parameters(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def dropped(world: World) -> list[int]:
    """How many broken boxes a run of both has counted, before and after it went on."""
    trainers = [
        Trainer(
            model(),
            Broken(4),
            TrainingOptions(batch_size=5, **OPTIONS | {"steps": steps}),
            precision=FLOAT32,
            world=world,
        )
        for steps in (1, 2)
    ]
    list(trainers[0].run())
    # Process 0 alone saves, and all load.
    states = world.share_out([trainers[0].state_dict()] if world.is_main else [])
    trainers[1].load_state_dict(states[0])
    list(trainers[1].run())
    return [trainer.dropped_boxes for trainer in trainers]


class Broken(ShapesDataset):
    """A broken box in every image."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        image, target = super().__getitem__(index)
        target["boxes"][0, 2] = target["boxes"][0, 0]
        return image, target


def evaluated(world: World) -> Evaluation | None:
    held_out = ShapesDataset(21, seed=1)
    found = detect_together(model(), held_out, world, precision=FLOAT32, batch_size=4)
    return found and score_detections(*found, held_out.class_names)


def main() -> None:
    found: dict[str, object] = {}
    with process_group() as world:
        first = Path(sys.argv[1], "first launch")
        if world.rank == 1 and not first.exists():
            first.write_text(world.launch)
            os.kill(os.getpid(), signal.SIGKILL)  # torchrun ends the other and starts both again
        world.any(False)  # both are there: the first start is over
        found["size"], found["launches"] = world.size, [first.read_text(), world.launch]
        for batch_size in (8, 5):
            together = trained(world, batch_size)
            if world.is_main:
                found[f"against one, {batch_size}"] = against_one(together, batch_size)
        found["saved normalizer"] = together.averaged_model.config["loss"]["normalizer"]
        evaluation = evaluated(world)
        if world.is_main:
            found["evaluations"] = [evaluation.metrics(), evaluated(World(CPU)).metrics()]
        # A step that is not finite in one process is skipped by both, and its image is named.
        options = TrainingOptions(batch_size=8, **OPTIONS)
        trainer = Trainer(model(), ShapesDataset(20), options, precision=FLOAT32, world=world)
        forward = trainer.model.forward
        if world.rank == 1:
            marked = []

            def poisoned(images: torch.Tensor, targets: Targets) -> dict[str, torch.Tensor]:
                if trainer.step == 1 and not marked:
                    marked.append(images[1])
                bad = torch.tensor([any(torch.equal(x, m) for m in marked) for x in images])
                factor = torch.where(bad, math.nan, 1 / 255)
                return forward(images * factor[:, None, None, None], targets)

            trainer.model.forward = poisoned
        reports = list(trainer.run())
        found["dropped"] = dropped(world)
        found["skipped"] = [report.skipped for report in reports]
        found["offender"] = [report.offender for report in reports]
        found["finite"] = all(p.isfinite().all().item() for p in trainer.model.parameters())
        Path(sys.argv[1], f"{world.rank}.json").write_text(json.dumps(found))


main()
