# SPDX-License-Identifier: BSD-3-Clause
"""Weights in safetensors, with all that is needed to use them as metadata in the same file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from ssd_fast.data.default_device import cpu_by_default
from ssd_fast.engine.output import write_file
from ssd_fast.models.ssd import SSD

__all__ = ["load_weights", "save_weights", "saved_config"]

_KEY = "ssd_fast"
_FORMAT = 1


def save_weights(path: str | os.PathLike[str], model: SSD, class_names: tuple[str, ...]) -> None:
    """Writes a model's tensors, its `config` (preprocessing included) and its classes.

    Args:
        path: the file, by custom `*.safetensors`; replaced whole or left as it is.
        model: on any device.
        class_names: without background; label i + 1 is `class_names[i]`.

    Raises:
        OSError: the file cannot be written.
        ValueError: another number of names than the model has classes.
    """
    from safetensors.torch import save

    if len(class_names) + 1 != model.num_classes:
        raise ValueError(
            f"class_names: expected {model.num_classes - 1}, one for each class of the model"
            f" but the background, got {len(class_names)}"
        )
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    description = {"format": _FORMAT, "class_names": class_names, "model": model.config}
    write_file(path, save(tensors, metadata={_KEY: json.dumps(description), "format": "pt"}))


def load_weights(
    path: str | os.PathLike[str], device: torch.device | str = "cpu"
) -> tuple[SSD, tuple[str, ...]]:
    """Builds the detector that a file describes, and fills it.

    Args:
        path: written by `save_weights`.
        device: where the model goes.

    Returns:
        The model, in evaluation mode, and its class names: label i + 1 is `class_names[i]`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, was not written by this package, or holds other tensors
            than its config asks for.
    """
    from safetensors import SafetensorError, safe_open

    if Path(path).is_dir():
        raise FileNotFoundError(
            f"no weights at {path}: it is a folder, name the file in it, such as"
            f" {Path(path) / 'weights.safetensors'}"
        )
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = file.keys()  # it is no mapping, and cannot be iterated over
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        hint = ""
        if Path(path).suffix in (".pt", ".pth"):
            hint = "; a run's are in weights.safetensors, ssd_fast.convert reads other SSDs'"
        raise ValueError(f"{path} is damaged or no safetensors file: {error}{hint}") from error
    model, class_names = _build(path, metadata)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} does not hold the tensors of its own config: {error}") from error
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.eval(), class_names


def saved_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The `config` of the model whose weights a file holds.

    Args:
        path: a safetensors file.

    Returns:
        The config, empty where another program wrote the file.

    Raises:
        ValueError: the file says something else than `save_weights` does.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if _KEY not in metadata:
        return {}
    try:
        return dict(json.loads(metadata[_KEY])["model"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} has a config that this version cannot read: {error}") from error


@cpu_by_default
def _build(path: str | os.PathLike[str], metadata: dict[str, str]) -> tuple[SSD, tuple[str, ...]]:
    """The model that a file's metadata describes, with new weights, and its class names."""
    if _KEY not in metadata:
        raise ValueError(
            f"{path} has no ssd_fast config inside: `ssd-fast train` and `demo` write one"
        )
    try:
        description: dict[str, Any] = json.loads(metadata[_KEY])
        found = description["format"]
        if found == _FORMAT:
            model = SSD.from_config(description["model"])
            class_names = tuple(map(str, description["class_names"]))
            if len(class_names) != model.num_classes - 1:
                raise ValueError(f"{len(class_names)} names for {model.num_classes - 1} classes")
            return model, class_names
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} has a config that this version cannot read: {error}") from error
    raise ValueError(
        f"{path} has weights format {found}, this version of ssd_fast reads format {_FORMAT}"
    )
