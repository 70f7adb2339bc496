"""Launch parameters that ``bench/gpu.py --tune`` found, a JSON table per GPU in the folder ``tuned`` beside this file.

A GPU without a table, or a shape that its table does not have, runs with what the kernels' `select_config` says.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent / "tuned"
TUNED_OPS = ("encoder_block", "decoder_block")


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


@functools.cache
def _table(path: Path) -> dict[str, dict[str, Any]]:
    return json.loads(path.read_text()) if path.is_file() else {}


def lookup(name: str, values: dict[str, Any], precision: str) -> dict[str, Any] | None:
    """Fields of the launch configuration for a call with the arguments ``values`` of the op's twin, or None."""
    if name not in TUNED_OPS:
        return None
    x, weight = values["x"], values["conv_weight"]
    columns = weight.shape[1] if name == "encoder_block" else values["stride"] * values["channels"]
    entry = key(name, columns, weight.shape[0], x.dtype, precision)
    # An entry without fields says that the default is best.
    return _table(FOLDER / table_name(x.device)).get(entry) or None
