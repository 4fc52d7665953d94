# SPDX-License-Identifier: BSD-3-Clause
"""Checkpoint files of other SSDs: read without running any code in them, and put into a model."""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssd_fast.convert.layouts import LAYOUTS
from ssd_fast.convert.state_dicts import import_state_dict, layout_of, num_classes_of
from ssd_fast.models import SSD, ssd300_vgg16

__all__ = ["load_ssd300", "load_weights", "read_weights"]

# Where training scripts keep the weights among an optimizer's state and counters.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights")
_DEPTH = 4  # wrappers in wrappers; a dictionary may contain itself
_DATA_PARALLEL = "module."

_Weights = Mapping[str, Tensor] | str | os.PathLike[str]


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, on the CPU. Nothing in the file is run.

    Args:
        path: a `.safetensors` file, or what `torch.save` wrote: a state dict, or a dictionary that
            holds one under "state_dict", "model_state_dict", "model", "net" or "weights", before
            any tensors beside it. The prefix "module." of `DataParallel` is taken off.

    Returns:
        Tensors by name.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: a `.safetensors` file, and the package that reads it is not installed.
        PermissionError: the file may not be read.
        ValueError: the file is damaged, or holds Python objects besides tensors, which would have
            to be run to be read.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path}")
    content = _read_safetensors(path) if Path(path).suffix == ".safetensors" else _read(path)
    weights = _unwrap(content)
    if not weights:
        raise ValueError(f"{path} holds no state dict; its content is {_outline(content)}")
    if all(name.startswith(_DATA_PARALLEL) for name in weights):
        weights = {name.removeprefix(_DATA_PARALLEL): value for name, value in weights.items()}
    return weights


def load_ssd300(weights: _Weights, *, layout: str | None = None, **options: Any) -> SSD:
    """Builds the SSD300 that a checkpoint of another implementation describes, and fills it.

    Args:
        weights: a file for `read_weights`, or a state dict.
        layout: whose names the tensors have, see `layout_of`; None finds out.
        **options: of `ssd_fast.ssd300_vgg16`, over what the layout says. It says the priors (for
            amdegroot and lufficc "coco" with 81 or 201 classes and "voc" else, so pass
            `priors="coco"` for a custom data set trained on COCO's boxes) and the normalisation.

    Returns:
        A model in evaluation mode, on the CPU, in float32.

    Raises:
        ValueError: another number of classes was asked for, or see `read_weights` and
            `import_state_dict`.

    Example:
        >>> model = ssd_fast.convert.load_ssd300("ssd300_mAP_77.43_v2.pth")
        >>> model([image])[0]["boxes"]
    """
    tensors = _tensors(weights)
    layout = layout_of(tensors) if layout is None else layout
    converted = import_state_dict(tensors, layout)
    found = num_classes_of(converted, "ssd_fast")
    asked = options.pop("num_classes", found)
    if asked != found:
        raise ValueError(
            f"num_classes: the checkpoint has {found}, background included, not {asked}; leave"
            f" num_classes out, or fine-tune: ssd_fast.convert.load_weights("
            f"ssd_fast.ssd300_vgg16({asked}), weights, keep_classifier=True)"
        )
    source = LAYOUTS[layout]
    defaults = {
        "priors": source.priors(found),
        "image_mean": source.image_mean,
        "image_std": source.image_std,
    }
    model = ssd300_vgg16(found, **(defaults | options))
    model.load_state_dict(converted)
    return model.eval()


def load_weights(
    model: SSD, weights: _Weights, *, layout: str | None = None, keep_classifier: bool = False
) -> SSD:
    """Fills an existing SSD300 with the weights of another implementation.

    Priors and normalisation stay the model's own: see `load_ssd300` for those of the weights.

    Args:
        model: an `ssd300_vgg16` of full width without batch norm; changed in place.
        weights: a file for `read_weights`, or a state dict.
        layout: whose names the tensors have, see `layout_of`; None finds out.
        keep_classifier: leave the model's classification heads as they are, to fine-tune on
            classes of your own.

    Returns:
        `model`.

    Raises:
        ValueError: the numbers of classes differ and `keep_classifier` is not set; the model is no
            SSD300 of full width; or see `read_weights` and `import_state_dict`.
    """
    converted = import_state_dict(_tensors(weights), layout)
    found = num_classes_of(converted, "ssd_fast")
    if keep_classifier:
        converted = {k: v for k, v in converted.items() if not k.startswith("heads.classification")}
    elif found != model.num_classes:
        raise ValueError(
            f"weights: they have {found} classes, background included, and the model"
            f" {model.num_classes}; build ssd300_vgg16({found}), or pass keep_classifier=True to"
            " keep the model's own classification heads and fine-tune"
        )
    held = model.state_dict()
    wrong = [
        name
        for name in (*converted, *held)
        if name not in held
        or (name not in converted and not name.startswith("heads.classification"))
        or (name in converted and held[name].shape != converted[name].shape)
    ]
    if wrong:
        names = ", ".join(map(repr, dict.fromkeys(wrong)))
        raise ValueError(
            f"model: expected ssd300_vgg16 of width 1 without batch norm; these tensors do not fit:"
            f" {names}"
        )
    model.load_state_dict(converted, strict=False)
    return model


def _tensors(weights: _Weights) -> Mapping[str, Tensor]:
    return read_weights(weights) if isinstance(weights, str | os.PathLike) else weights


def _read_safetensors(path: str | os.PathLike[str]) -> object:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "reading .safetensors needs safetensors; install it with pip install 'ssd_fast[train]'",
            name=error.name,
        ) from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error


def _read(path: str | os.PathLike[str]) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is damaged, or holds Python objects besides tensors, and reading those would"
            " run code out of the file. Where the file was made, save the tensors alone:"
            " torch.save(model.state_dict(), 'weights.pth'), with model = torch.load(...)['model']"
            " if it is a checkpoint of a whole model"
        ) from error
    except PermissionError:
        raise
    except Exception as error:  # torch.load lets through whatever a damaged byte leads to
        raise ValueError(f"{path} is damaged or was not written by torch.save") from error


def _unwrap(content: object, depth: int = _DEPTH) -> dict[str, Tensor]:
    """The state dict in a checkpoint, or nothing."""
    if not isinstance(content, Mapping):
        return {}
    for key in _WRAPPERS if depth else ():
        if held := _unwrap(content.get(key), depth - 1):
            return held
    return {str(k): v for k, v in content.items() if isinstance(v, Tensor)}


def _outline(content: object) -> str:
    if isinstance(content, Mapping):
        return f"a dictionary of {', '.join(map(repr, list(content)[:8])) or 'nothing'}"
    return type(content).__name__
