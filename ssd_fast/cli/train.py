# SPDX-License-Identifier: BSD-3-Clause
"""`ssd-fast train`: a detector for a folder of photographs, saved as it learns."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

__all__ = ["CHECKPOINT", "Train"]

CHECKPOINT = "checkpoint.pt"
# These may change when a run goes on: where it reads and writes, and when it saves and looks.
_FREE = ("data", "output", "resume", "workers", "save_every", "validate_every", "tensorboard")


@dataclass(frozen=True)
class Train:
    """Trains an SSD300 on a folder of images and boxes; Ctrl-C saves, --resume goes on."""

    data: str = ""
    """A folder in VOC or COCO layout, VOC2007,VOC2012 for both, or shapes for generated scenes."""
    output: Path = Path("ssd-fast-train")
    """Folder for weights.safetensors, checkpoint.pt, log.jsonl, log.csv, metrics.json,
    training.png, examples of each validation, and report/report.html of the last one, whose score
    threshold predict takes."""
    resume: bool = False
    """Go on with the run in the output folder, with its options."""
    recipe: Literal["", "paper-voc", "torchvision-coco", "finetune"] = ""
    """Options that belong together; typed ones go on top, and --recipe NAME --help shows them.
    paper-voc: SSD paper, section 3.1. torchvision-coco: torchvision's references/detection.
    finetune: a detector's backbone (--backbone-weights) on data of one's own."""
    epochs: float = 100.0
    """How often every image is seen."""
    steps: int | None = None
    """Training steps, in place of epochs."""
    batch_size: int = 8
    """Images a step, of all processes together."""
    width: float = 0.25
    """Channels, as a share of the paper's SSD300."""
    norm: bool = True
    """Batch norm after each convolution, which training from scratch needs."""
    priors: str = "voc"
    """Prior boxes: voc, coco, torchvision, nvidia, sgrvinod or caffe-voc."""
    backbone_weights: str = ""
    """What the backbone starts with: a file, or VGG16_Weights.IMAGENET1K_FEATURES of torchvision;
    a file is of ssd_fast, of an SSD300 that ssd_fast.convert knows, or of VGG16. none: random."""
    freeze: int = 0
    """Stages of the backbone, conv1 to conv5, that keep their weights."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with momentum."""
    learning_rate: float = 3e-3
    """Peak of the schedule, reached after the warm-up."""
    momentum: float = 0.9
    """Of SGD."""
    schedule: Literal["cosine", "multistep"] = "cosine"
    """How the learning rate falls: by a cosine to 0, or at milestones."""
    milestones: tuple[float, ...] = (2 / 3, 5 / 6)
    """Where multistep lowers it, as shares of the run."""
    gamma: float = 0.1
    """What multistep multiplies it by."""
    warmup: int = 100
    """Steps of warm-up, at most a quarter of the run."""
    weight_decay: float = 5e-4
    """Of convolution weights; biases and norms do not decay."""
    clip_norm: float = 10.0
    """Limit of the gradient's norm; inf for none."""
    average: float = 0.99
    """Decay of the moving average of the weights, which is evaluated and saved; 0 for none. Less in
    a run of under 400 steps."""
    augment: Literal["ssd", "torchvision", "flip", "none"] = "ssd"
    """ssd is the paper's: zoom-out, crop, mirror and colour, by Caffe's numbers; torchvision is the
    same by torchvision's."""
    difficult: Literal["use", "ignore", "drop"] = "use"
    """Objects that VOC marks difficult: use them as others, ignore their regions, or drop them."""
    classification: Literal["softmax", "focal"] = "softmax"
    """softmax, with hard negatives mined, as SSD's paper; focal: sigmoids, trained by RetinaNet's
    focal loss of all boxes."""
    min_negatives: int = 0
    """Background boxes that an image trains at least; 0 trains nothing on images without objects,
    where Caffe's SSD trained nothing either."""
    seed: int = 0
    """Of the weights, the order and the augmentation."""
    workers: int = 0
    """Processes that read images; 0 reads in this one. Small sets stay in memory."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of the model; auto is bfloat16 where the hardware multiplies it. float16, with
    scaled gradients, needs a GPU."""
    compile: Literal["no", "default", "cuda-graphs"] = "no"
    """Compile the model and its loss by torch.compile; cuda-graphs needs a GPU."""
    train_set: str = "train"
    """Set of the folder to train on."""
    validation_set: str = ""
    """Set of the folder to validate on; by default val or test, whose images are not trained on."""
    validate_every: float = 0.0
    """Epochs between validations; 0 validates at the end."""
    save_every: float = 60.0
    """Seconds between checkpoints."""
    tensorboard: bool = False
    """Also log for TensorBoard, into the folder tensorboard of the output."""

    def run(self) -> int:
        """Trains to the end, or to the first Ctrl-C or SIGTERM."""
        from ssd_fast.cli.extras import require

        require("training", "rich", "PIL", "defusedxml", "matplotlib", "safetensors")
        from contextlib import nullcontext

        from ssd_fast.cli.training_run import TrainingRun
        from ssd_fast.engine.checkpoint import load_checkpoint
        from ssd_fast.engine.distributed import process_group
        from ssd_fast.engine.output import locked_folder, output_folder

        self._check_numbers()
        path = self.output / CHECKPOINT
        with process_group() as world:
            goes_on = self.resume or _is_of_launch(path, world.launch)
            if not goes_on and world.is_main:
                output_folder(self.output)
            with locked_folder(self.output) if world.is_main else nullcontext():
                if not goes_on and path.exists():
                    raise ValueError(
                        f"{self.output} holds a run already: add --resume to go on with it, or"
                        " name another folder with --output"
                    )
                saved = load_checkpoint(path) if goes_on else None
                if saved is not None:
                    self._check_unchanged(saved["options"])
                elif self.freeze > 0 and self.backbone_weights in ("", "none"):
                    raise ValueError(
                        f"--freeze: {self.freeze} stages would keep random weights; name a detector"
                        " or VGG16 with --backbone-weights, or take --freeze 0"
                    )
                return TrainingRun(self, saved, world).run()

    def resumed(self) -> Train:
        """The options of the run in the output folder, on which those of the command line go.

        Raises:
            FileNotFoundError: there is no run in the folder.
            ValueError: its checkpoint is damaged, or not of `ssd-fast train`.
        """
        from ssd_fast.cli.extras import require

        require("training", "rich", "PIL", "defusedxml", "matplotlib", "safetensors")
        from ssd_fast.engine.checkpoint import load_checkpoint

        path = self.output / CHECKPOINT
        saved = load_checkpoint(path)
        missing = {"options", "trainer", "model", "class_names", "images", "seconds"} - saved.keys()
        if missing:
            raise ValueError(
                f"{path} is no checkpoint of `ssd-fast train`: {', '.join(sorted(missing))} missing"
            )
        unknown = saved["options"].keys() - {field.name for field in dataclasses.fields(self)}
        if unknown:
            raise ValueError(
                f"{path} is of another version of ssd_fast, with options that this one lacks:"
                f" {', '.join(sorted(unknown))}"
            )
        return Train(**saved["options"], output=self.output, resume=True)

    def _check_numbers(self) -> None:
        """Raises ValueError for a number that only this command knows, and that nothing can be."""
        if not 0 <= self.validate_every < math.inf:
            raise ValueError(
                "--validate-every: expected a number of epochs, or 0 to validate at the end alone,"
                f" got {self.validate_every}"
            )
        if not self.save_every >= 0:
            raise ValueError(f"--save-every: expected 0 seconds or more, got {self.save_every}")
        if self.min_negatives < 0:
            raise ValueError(f"--min-negatives: expected 0 or more, got {self.min_negatives}")
        if self.min_negatives > 0 and self.classification == "focal":
            raise ValueError(
                f"--min-negatives: the focal loss trains all background boxes, not"
                f" {self.min_negatives}; leave the option out"
            )
        if not -(2**63) <= self.seed < 2**64:
            raise ValueError(f"--seed: expected a number of 64 bits, got {self.seed}")

    def _check_unchanged(self, saved: dict[str, Any]) -> None:
        """Raises ValueError for an option that a run cannot change on its way."""
        for name, own in self.saved().items():
            if name not in _FREE and own != saved.get(name, own):
                option = "--" + name.replace("_", "-")
                raise ValueError(
                    f"{option}: the run in {self.output} was started with {saved[name]}, not"
                    f" {own}; leave the option out, or start a new run in another --output"
                )

    def saved(self) -> dict[str, Any]:
        """The options that a checkpoint keeps."""
        options = dataclasses.asdict(self)
        del options["output"], options["resume"]
        return options


def _is_of_launch(path: Path, launch: str) -> bool:
    """Whether a checkpoint was written by this torchrun, before it started its processes again."""
    from ssd_fast.engine.checkpoint import load_checkpoint

    if not launch or not path.exists():
        return False
    try:
        return bool(load_checkpoint(path).get("launch") == launch)
    except ValueError:  # something else, which is not touched
        return False
