# SPDX-License-Identifier: BSD-3-Clause
"""One epoch of torchvision's SSDlite, original and accelerated, from the same weights.

    python -m benchmarks.training_curves benchmarks/results/training_curves.json

Both train on the same generated scenes in the same order, a step of one after a step of the other,
on one thread. A third, the original with weights moved by a rounding (1e-7 of themselves), shows
how far two runs of the same code come apart: batch norm over four values amplifies what is last in
a float. Writes losses and times as JSON, and the curves as SVG beside it.

Times are processor time: of a step (forward, backward, optimizer), and of what accelerate replaces,
a step's part outside the network: anchors, matching and loss, and its gradient until the first of
the heads' outputs has one.
"""

import argparse
import copy
import json
import math
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

import ssd_fast
from benchmarks.plot import BASELINE_COLOR, PEER_COLOR
from ssd_fast.data import ShapesDataset, collate

SIZE = 320
WARM_UP = 2  # steps left out of the times
CONTENDERS = ("ssd_fast", "torchvision")
CONTROL = "torchvision, weights moved by 1e-7"


def build() -> nn.Module:
    """SSDlite with random weights."""
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    torch.manual_seed(0)
    model: nn.Module = ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=len(ShapesDataset.class_names) + 1
    )
    return model


class Stopwatch:
    """Processor time that a model spends outside its network, by hooks on the network's parts."""

    def __init__(self, model: nn.Module) -> None:
        heads = model.head.regression_head.module_list, model.head.classification_head.module_list
        for module in (model.transform, model.backbone, *heads[0], *heads[1]):
            module.register_forward_pre_hook(lambda *_: self._enter())
            module.register_forward_hook(lambda *_: self._leave())
        for layer in (*heads[0], *heads[1]):
            layer.register_forward_hook(lambda *call: self._watch(call[2]))
        self.inside = self.entered = self.first_gradient = 0.0

    def _enter(self) -> None:
        self.entered = time.process_time()

    def _leave(self) -> None:
        self.inside += time.process_time() - self.entered

    def _watch(self, output: Tensor) -> None:
        output.register_hook(lambda _: self._reached())

    def _reached(self) -> None:
        self.first_gradient = self.first_gradient or time.process_time()


def step(
    model: nn.Module,
    optimizer: Optimizer,
    watch: Stopwatch,
    images: list[Tensor],
    targets: list[dict[str, Tensor]],
) -> dict[str, float]:
    """One step; its losses, "seconds" of processor time and those "outside" the network."""
    watch.inside = watch.first_gradient = 0.0
    optimizer.zero_grad()
    start = time.process_time()
    losses = model(images, targets)
    middle = time.process_time()
    sum(losses.values()).backward()
    optimizer.step()
    seconds = time.process_time() - start
    outside = middle - start - watch.inside + watch.first_gradient - middle
    times = {"seconds": seconds, "outside": outside}
    return {name: float(loss.detach()) for name, loss in losses.items()} | times


def moved(original: nn.Module) -> nn.Module:
    """A copy with weights a rounding away."""
    model = copy.deepcopy(original)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 1e-7 * torch.randn_like(parameter))
    return model


def epoch(steps: int, batch: int, learning_rate: float) -> dict[str, dict[str, list[float]]]:
    """Trains both on each scene once, in turn; the values of `step` by contender."""
    original = build()
    models = {
        "torchvision": original,
        "ssd_fast": ssd_fast.accelerate(copy.deepcopy(original)),
        CONTROL: moved(original),
    }
    watches = {name: Stopwatch(model) for name, model in models.items()}
    optimizers = {
        name: SGD(model.train().parameters(), learning_rate, momentum=0.9, weight_decay=4e-5)
        for name, model in models.items()
    }
    scenes = ShapesDataset(steps * batch, size=SIZE)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in models}
    for i in range(steps):
        images, targets = collate([scenes[i * batch + j] for j in range(batch)])
        images = [image / 255 for image in images]
        # Who goes first finds the caches full of the other's weights; they take turns.
        for name in (*(CONTENDERS if i % 2 else CONTENDERS[::-1]), CONTROL):
            rows[name].append(step(models[name], optimizers[name], watches[name], images, targets))
    return {name: {key: [row[key] for row in own] for key in own[0]} for name, own in rows.items()}


def summarize(curves: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """How far the losses are apart, and how long a step takes."""
    totals = {
        name: [a + b for a, b in zip(own["bbox_regression"], own["classification"], strict=True)]
        for name, own in curves.items()
    }
    apart = {
        name: [abs(a - b) / b for a, b in zip(totals[name], totals["torchvision"], strict=True)]
        for name in ("ssd_fast", CONTROL)
    }
    return {
        "loss_of_the_last_ten_steps": {n: statistics.mean(t[-10:]) for n, t in totals.items()},
        "relative_difference_to_torchvision": {
            name: {"first step": own[0], "median": statistics.median(own), "largest": max(own)}
            for name, own in apart.items()
        },
        "seconds_of_a_step": {name: median(curves[name]["seconds"]) for name in CONTENDERS},
        "seconds_saved_a_step": saved(curves),
        "seconds_outside_the_network": {
            name: median(curves[name]["outside"]) for name in CONTENDERS
        },
    }


def median(seconds: list[float]) -> float:
    """Without the first steps, which set things up."""
    return statistics.median(seconds[WARM_UP:])


def saved(curves: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """How much sooner the accelerated one ends a step than torchvision's of the same scenes.

    The median of the steps' differences, the interval that holds it with 95 % (ranks n/2 +- sqrt(n)
    of the sorted ones: the binomial distribution's), and in how many steps it was sooner.
    """
    ours, theirs = (curves[name]["seconds"][WARM_UP:] for name in CONTENDERS)
    differences = sorted(b - a for a, b in zip(ours, theirs, strict=True))
    middle, reach = len(differences) / 2, math.sqrt(len(differences))
    low, high = max(0, math.floor(middle - reach)), math.ceil(middle + reach)
    return {
        "median": statistics.median(differences),
        "interval of 95 %": [differences[low], differences[min(high, len(differences) - 1)]],
        "steps": f"sooner in {sum(d > 0 for d in differences)} of {len(differences)}",
    }


def conditions() -> dict[str, Any]:
    """What the numbers depend on."""
    import cpuinfo
    import torchvision

    return {
        "cpu": cpuinfo.get_cpu_info()["brand_raw"],
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "ssd_fast": ssd_fast._C.source_hash,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def draw(report: dict[str, Any], path: Path) -> None:
    """The losses over the steps: torchvision's wide, the accelerated one's thin upon it."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "ssd_fast", "font.size": 9})
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(7.5, 2.8), layout="constrained")
    styles = {
        "torchvision": (PEER_COLOR, 4.0, "-"),
        CONTROL: ("#3d4852", 0.8, ":"),
        "ssd_fast": (BASELINE_COLOR, 1.2, "-"),
    }
    for axis, loss in zip(axes, ("classification", "bbox_regression"), strict=True):
        for name, (color, width, line) in styles.items():
            values = report["curves"][name][loss]
            axis.plot(values, color=color, linewidth=width, linestyle=line, label=name)
        axis.set_ylim(bottom=0)
        axis.set_title(loss, loc="left", fontsize=9, fontweight="bold")
        axis.set_xlabel("step")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    outside = report["summary"]["seconds_outside_the_network"]
    machine = report["conditions"]
    caption = (
        f"Outside the network a step takes {1e3 * outside['ssd_fast']:.1f} ms, torchvision's "
        f"{1e3 * outside['torchvision']:.1f} ms; B={report['batch']}, {machine['cpu']}, torch "
        f"{machine['torch']}, {machine['date']}"
    )
    figure.supxlabel(caption, fontsize=7, color="#606f7b", x=0.01, ha="left")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Trains, writes the JSON and the picture, prints the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("output", type=Path, help="the JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    curves = epoch(options.steps, options.batch, options.learning_rate)
    report = {
        "batch": options.batch,
        "learning_rate": options.learning_rate,
        "conditions": conditions(),
        "summary": summarize(curves),
        "curves": curves,
    }
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    draw(report, options.output.with_suffix(".svg"))
    print(json.dumps(report["summary"], indent=1))


if __name__ == "__main__":
    main()
