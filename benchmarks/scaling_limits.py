# SPDX-License-Identifier: BSD-3-Clause
"""How cost may grow on the CPU, measured: `python -m benchmarks.scaling_limits`.

One line a law, with what was measured here and its limit: how matching grows with objects and
priors, how evenly the loss grows with the batch while that fits in the caches, what autograd adds
to it, how far loss and detection are from the pass over the logits alone, and what share of the
speed with AVX-512 is left with AVX2 alone. One thread, medians, warm caches unless it says cold.
"""

import argparse
import itertools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import CELLS, make_case
from benchmarks.harness import Budget, Cache, before, interleave, threads_of_torch
from ssd_fast import _C, ops, priors
from ssd_fast.ops._loss_arguments import BACKWARD_OPTIONS, loss_options
from ssd_fast.testing import CROWDS, as_maps, crowded_boxes, decided_objects, seeded

NO_SCORE = 0.999999  # no class of a trained case reaches it

Calls = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Law:
    """What was measured of a law.

    Args:
        what: the law, in words.
        value: measured.
        limit: what it must not exceed, or fall below.
        unit: of both.
        is_least: the limit is the least value.
    """

    what: str
    value: float
    limit: float
    unit: str = ""
    is_least: bool = False

    @property
    def holds(self) -> bool:
        """Whether the value keeps the limit."""
        return self.value >= self.limit if self.is_least else self.value <= self.limit

    def __str__(self) -> str:
        bound = "at least" if self.is_least else "at most"
        verdict = "holds" if self.holds else "MISSED"
        return (
            f"{self.what}: {self.value:.3g}{self.unit}, {bound} {self.limit:.3g}{self.unit}: "
            f"{verdict}"
        )


def medians(calls: Calls, budget: Budget, cache: Cache = "hot") -> dict[str, float]:
    """Microseconds of each call, timed in turn."""
    rounds = interleave(list(calls.values()), before(cache), budget)
    return {
        name: statistics.median(times) * 1e6
        for name, times in zip(calls, zip(*rounds, strict=True), strict=True)
    }


def matching(budget: Budget) -> Iterator[Law]:
    """Of a batch of 8, so that a call's own cost is shared; an image each."""
    grids = {"8732": priors.ssd300(), "24564": priors.ssd512()}
    counts = (1, 8, 64)
    calls: Calls = {}
    for name, grid in grids.items():
        for count in counts:
            truth = decided_objects(8, grid, seeded(count), counts=(count, count))
            calls[f"{name}, {count}"] = partial(ops.match, grid, truth.boxes, truth.offsets)
    times = medians(calls, budget)
    for count in counts:
        limit = 3.0 + count
        yield Law(
            f"match, 8732 priors, {count} objects an image", times[f"8732, {count}"] / 8, limit,
            " us an image",
        )  # fmt: skip
    for count in counts:
        growth = times[f"24564, {count}"] / times[f"8732, {count}"]
        yield Law(f"match from 8732 to 24564 priors, {count} objects an image", growth, 1.5, "x")


def batches(budget: Budget) -> Iterator[Law]:
    """An image's time in batches of 4 to 16, which hold 3 to 12 MB of logits."""
    calls: Calls = {}
    for batch in (4, 8, 16):
        case = make_case(batch, 21)
        calls[str(batch)] = partial(
            ops.multibox_loss, case.deltas, case.logits, case.priors, *case.objects
        )
    each = [time / int(batch) for batch, time in medians(calls, budget).items()]
    spread = 100 * (max(each) / min(each) - 1)
    yield Law("multibox_loss forward, C=21, an image in batches of 4 to 16", spread, 15, " % apart")


def autograd(budget: Budget) -> Iterator[Law]:
    """What it costs to differentiate one image's loss, beyond the operators called one by one."""
    case = make_case(1, 21)
    for what, limit, deltas, logits in (
        ("one tensor", 80, [case.deltas], [case.logits]),
        ("six levels", 125, as_maps(case.deltas, CELLS), as_maps(case.logits, CELLS)),
    ):
        targets = case.priors, *case.objects
        options = loss_options()
        leaves = [x.clone().requires_grad_() for x in (*deltas, *logits)]
        times = medians(
            {
                "both": partial(differentiate, leaves, targets),
                "operators": partial(call_operators, deltas, logits, targets, options),
            },
            budget,
        )
        added = max(times["both"] - times["operators"], 0)
        yield Law(
            f"autograd around multibox_loss, forward + backward, B=1, {what}", added, limit, " us"
        )


def differentiate(leaves: list[Tensor], targets: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The gradients of both losses, as a user asks for them; half of the leaves are deltas."""
    levels = len(leaves) // 2
    with torch.enable_grad():
        box_loss, class_loss, _ = ops.multibox_loss(leaves[:levels], leaves[levels:], *targets)
        return torch.autograd.grad((box_loss, class_loss), leaves)


def call_operators(
    deltas: list[Tensor],
    logits: list[Tensor],
    targets: tuple[Tensor, ...],
    options: tuple[Any, ...],
) -> tuple[list[Tensor], list[Tensor]]:
    """The same gradients from the two operators."""
    operators = torch.ops.ssd_fast
    _, _, num_positives, code = operators.multibox_loss.default(
        deltas, logits, *targets, None, None, *options
    )
    one = torch.ones(())
    shared = targets, (code, num_positives, None), options[BACKWARD_OPTIONS]
    gradients: tuple[list[Tensor], list[Tensor]] = operators.multibox_loss_backward.default(
        one, one, deltas, logits, *itertools.chain(*shared)
    )
    return gradients


def distances(budget: Budget) -> Iterator[Law]:
    """What loss and detection take beyond the one pass over the logits that neither can leave out.

    Of the loss that is reading them from memory, of detection comparing all and finding nothing.
    """
    for classes, limit in ((21, 3.6), (81, 2.0)):
        case = make_case(8, classes)
        heads = case.deltas, case.logits, case.priors
        loss = partial(ops.multibox_loss, *heads, *case.objects)
        times = medians({"loss": loss, "read": case.logits.sum}, budget, "cold")
        yield Law(
            f"multibox_loss forward, C={classes}, cold, of reading the logits",
            times["loss"] / times["read"], limit, "x",
        )  # fmt: skip
        nothing = partial(ops.detect, *heads, score_threshold=NO_SCORE)
        times = medians({"detect": partial(ops.detect, *heads), "nothing": nothing}, budget)
        yield Law(
            f"detect, C={classes}, trained scores, of finding nothing",
            times["detect"] / times["nothing"], 2.0, "x",
        )  # fmt: skip


def instruction_sets(budget: Budget) -> Iterator[Law]:
    """The share of a ratio to any system that is left: our time with AVX-512 over that with AVX2.

    Nothing where the machine has no AVX-512.
    """
    best = _C.instruction_sets()[-1]
    if best != "avx512":
        return
    try:
        for what, call in operators().items():
            times = medians(
                {name: partial(run_with, name, call) for name in ("avx2", best)}, budget
            )
            share = 100 * times[best] / times["avx2"]
            yield Law(f"{what} with AVX2 alone, of the speed with AVX-512", share, 33, " %", True)
    finally:
        _C.set_instruction_set(best)


def run_with(instruction_set: str, call: Callable[[], object]) -> object:
    """The result of the call on that instruction set, which stays chosen."""
    _C.set_instruction_set(instruction_set)
    return call()


def operators() -> Calls:
    """The operators at their usual sizes."""
    calls: Calls = {}
    for classes in (21, 81):
        case = make_case(8, classes)
        heads = case.deltas, case.logits, case.priors
        calls[f"multibox_loss forward, C={classes}"] = partial(
            ops.multibox_loss, *heads, *case.objects
        )
        calls[f"detect, C={classes}"] = partial(ops.detect, *heads)
    for crowd in CROWDS:
        boxes, scores = crowded_boxes(crowd, 5000, seeded(0))
        calls[f"nms, N=5000, {crowd}"] = partial(ops.nms, boxes, scores, 0.45)
    return calls


def laws(budget: Budget) -> Iterator[Law]:
    """Measures all laws, one after the other."""
    with threads_of_torch(1), torch.no_grad():
        for measure in (matching, batches, autograd, distances, instruction_sets):
            yield from measure(budget)


def main() -> None:
    """Prints a line a law."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.2, help="to time each call")
    budget = Budget(parser.parse_args().seconds, min_rounds=7)
    for law in laws(budget):
        print(law, flush=True)


if __name__ == "__main__":
    main()
