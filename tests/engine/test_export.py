# SPDX-License-Identifier: BSD-3-Clause
"""What is exported detects the same, for other numbers of images, without the code of the model."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ssd_fast.engine.export import export_aoti, export_onnx, export_torch
from ssd_fast.models import SSD, ssd300_vgg16
from ssd_fast.testing import seeded

NAMES = ["boxes", "scores", "labels", "counts"]


def build(**options) -> SSD:
    """A slim model whose scores are spread: many candidates, few close decisions."""
    torch.manual_seed(0)
    model = ssd300_vgg16(4, width=0.03, **options).eval()
    if model.loss.classification == "softmax":  # the focal loss starts from small weights
        for layer in model.heads.classification:
            layer.weight.data.mul_(0.1)
    return model


def images(count: int) -> Tensor:
    return torch.rand(count, 3, 300, 300, generator=seeded(count))


def expected(model: SSD, count: int) -> list[Tensor]:
    with torch.no_grad():
        return list(model.detect_padded(images(count)))


LOADERS = {
    "torch": (export_torch, "torch.export.load(path).module()"),
    "aoti": (export_aoti, "torch._inductor.aoti_load_package(path)"),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_runs_where_only_torch_and_ssd_fast_are_imported(tmp_path: Path, kind: str, request):
    """In a process of its own, for 1 and 3 images where 2 were exported."""
    if kind == "aoti" and not request.config.getoption("--full"):
        pytest.skip("compiles C++ for minutes: run with --full")
    export, load = LOADERS[kind]
    model = build()
    export(model, tmp_path / "model.pt2")
    torch.save([images(1), images(3)], tmp_path / "images.pt")
    script = f"""
import sys, torch, ssd_fast
path = r"{tmp_path / "model.pt2"}"
run = {load}
found = [list(run(x)) for x in torch.load(r"{tmp_path / "images.pt"}")]
torch.save(found, r"{tmp_path / "found.pt"}")
assert "torchvision" not in sys.modules and "ssd_fast.engine.export" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
    for count, found in zip((1, 3), torch.load(tmp_path / "found.pt"), strict=True):
        for name, actual, reference in zip(NAMES, found, expected(model, count), strict=True):
            # Compiled convolutions sum in another order.
            tolerance = 0 if kind == "torch" else 1e-4
            torch.testing.assert_close(
                actual, reference, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
            )


OPTIONS = [
    {},
    {"top_k": 20, "iou_threshold": 0.3, "max_detections": 31, "score_threshold": 0.2},
    {"top_k": 5, "max_detections": 40},  # more than there are candidates
    {"loss": {"variances": (0.1, 0.15, 0.2, 0.25), "background_index": 3}},
    {"classification": "focal", "loss": {"background_index": None}, "score_threshold": 0.02},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(options) or "standard")
def test_onnx_gives_the_same_detections(tmp_path: Path, options):
    """By onnxruntime, with no operator that is not ONNX's own."""
    onnx = pytest.importorskip("onnx", reason="needs onnx")
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    model = build(**options)
    export_onnx(model, tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(graph)
    assert {node.domain for node in graph.graph.node} == {""}
    assert not graph.functions
    assert "NonMaxSuppression" in {node.op_type for node in graph.graph.node}
    session = onnxruntime.InferenceSession(
        str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    for count in (1, 3):
        outputs = session.run(NAMES, {"images": images(count).numpy()})
        reference = expected(model, count)
        assert int(reference[3].min()) > 3
        boxes, scores, labels, counts = (torch.from_numpy(output) for output in outputs)
        assert counts.equal(reference[3])
        assert labels.equal(reference[2])
        torch.testing.assert_close(scores, reference[1], rtol=1e-4, atol=0)
        torch.testing.assert_close(boxes, reference[0], rtol=1e-4, atol=1e-4)


def test_onnx_without_detections(tmp_path: Path):
    """Counts of 0, and zeros."""
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    export_onnx(build(score_threshold=0.9999), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(
        str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    outputs = session.run(NAMES, {"images": torch.zeros(2, 3, 300, 300).numpy()})
    assert [not output.any() for output in outputs] == [True] * 4


def test_the_model_is_left_as_it_was(tmp_path: Path):
    """In training, with a part that is frozen in evaluation."""
    model = build().train()
    model.backbone.eval()
    before = [module.training for module in model.modules()]
    export_torch(model, tmp_path / "model.pt2")
    assert [module.training for module in model.modules()] == before


def test_bad_arguments_are_named(tmp_path: Path):
    model = build()
    with pytest.raises(ValueError, match=r"opset: expected 18 or later, got 11"):
        export_onnx(model, tmp_path / "model.onnx", opset=11)
    model.nms = "diou"
    with pytest.raises(ValueError, match=r"nms: ONNX has hard suppression alone, got .*'diou'"):
        export_onnx(model, tmp_path / "model.onnx")
    model.nms, model.top_k = "hard", 0
    with pytest.raises(ValueError, match=r"top_k: ONNX has .* one candidate or more, .* with 0;"):
        export_onnx(model, tmp_path / "model.onnx")
    for threshold in (-0.5, 1.5):
        model.top_k, model.iou_threshold = 400, threshold
        with pytest.raises(ValueError, match=rf"iou_threshold: .* \[0, 1\] .* {threshold};"):
            export_onnx(model, tmp_path / "model.onnx")
    model.iou_threshold, model.score_threshold = 0.45, -0.25
    with pytest.raises(ValueError, match=r"score_threshold: .* 0 or more, got .* -0\.25;"):
        export_onnx(model, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"package is named \*\.pt2, got .*model\.so"):
        export_aoti(model, tmp_path / "model.so")
    assert not list(tmp_path.iterdir())


def test_an_opset_that_is_too_new_leaves_no_file(tmp_path: Path):
    """torch.onnx.export writes another one and logs it."""
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    with pytest.raises(ValueError, match=r"opset: torch .* can not write 99, only .* opset=18"):
        export_onnx(build(), tmp_path / "model.onnx", opset=99)
    assert not list(tmp_path.iterdir())


@pytest.fixture(params=[export_torch, export_aoti, export_onnx], ids=lambda f: f.__name__)
def export(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Each of the three, of which AOTInductor's does not compile."""

    def package(program: torch.export.ExportedProgram, package_path: BytesIO) -> None:
        package_path.write(b"compiled")

    if request.param is export_onnx:
        pytest.importorskip("onnxscript", reason="needs onnxscript")
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", package)
    return request.param


def test_an_export_that_ends_early_keeps_the_old_file(
    export: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "model.pt2"
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"cannot write .*model\.pt2: No space .* unchanged"):
            export(build(), path)
    assert path.read_bytes() == b"old"
    export(build(), path)
    assert path.read_bytes() != b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_the_way_is_named(export: Callable, tmp_path: Path):
    folder = tmp_path / "model.pt2"
    folder.mkdir()
    with pytest.raises(OSError, match=r"cannot write .*model\.pt2: it is a folder; name a file"):
        export(build(), folder)
    assert not list(folder.iterdir())


def test_a_model_without_weights_is_refused(export: Callable, tmp_path: Path):
    with pytest.raises(ValueError, match="model: on the meta device it has no weights"):
        export(build().to("meta"), tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_more_than_a_file_of_onnx_holds_is_refused(tmp_path: Path):
    with torch.device("meta"):
        model = ssd300_vgg16(4000)
    with pytest.raises(ValueError, match=r"model: .* up to 2000000000 bytes .*, got 2\d{9};"):
        export_onnx(model, tmp_path / "model.onnx")


def test_as_many_images_as_documented(tmp_path: Path):
    export_torch(build(), tmp_path / "model.pt2")
    (bounds,) = torch.export.load(tmp_path / "model.pt2").range_constraints.values()
    assert (bounds.lower, bounds.upper) == (1, 1024)
    assert f"for B from {bounds.lower} up to {bounds.upper};" in export_torch.__doc__
