"""Launch parameters that `bench/tune.py` found, a JSON table per GPU in the folder ``tuned`` beside this file.

A GPU without a table, or a shape that its table does not have, runs with what the kernels' `select_config` says.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch

from .registry import SPECS, OpSpec, Values

FOLDER = Path(__file__).parent / "tuned"
TUNED_OPS = tuple(name for name, spec in SPECS.items() if spec.tuned is not None)


def table_name(device: torch.device) -> str:
    """File name of the table of a device."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{name.replace(' ', '_')}.json"


def key(name: str, columns: int, channels: int, dtype: torch.dtype, precision: str) -> str:
    """Name of an entry: what of a call decides which parameters are best, besides the device."""
    return f"{name} {columns}x{channels} {str(dtype).removeprefix('torch.')} {precision}"


def use(folder: Path) -> None:
    """Read the tables of another folder from now on, and as they are now."""
    global FOLDER
    FOLDER = folder
    _table.cache_clear()
    _table_of.cache_clear()


@functools.cache
def _table(path: Path) -> dict[str, dict[str, Any]]:
    return json.loads(path.read_text()) if path.is_file() else {}


@functools.cache
def _table_of(device: torch.device, folder: Path) -> dict[str, dict[str, Any]]:
    return _table(folder / table_name(device))


def lookup(spec: OpSpec, values: Values, precision: str) -> dict[str, Any] | None:
    """Fields of the launch configuration for a call with the arguments ``values`` of a reference, or None."""
    x = values.get("x")
    if spec.tuned is None or x is None:
        return None
    table = _table_of(x.device, FOLDER)
    if not table:
        return None
    # An entry without fields says that the default is best.
    return table.get(key(spec.name, *spec.tuned(values), x.dtype, precision)) or None
