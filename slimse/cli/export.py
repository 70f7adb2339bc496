"""``slimse export``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..hub import DEFAULT
from .terminal import a_path


class Precision(StrEnum):
    """Of stored weights."""

    float32 = "float32"
    float16 = "float16"
    int8 = "int8"


def export(
    output: Annotated[
        Path, typer.Option("--output", "-o", parser=a_path, help="File to write: .onnx, or .pt2 for torch.export.")
    ],
    model: Annotated[str, typer.Argument(help="Bundled weights, or a .safetensors file.")] = DEFAULT,
    uf: Annotated[float | None, typer.Option(help="One width; without it the file has all, and the router.")] = None,
    frames: Annotated[int, typer.Option(help="Frames of 16 ms per call of a stream.")] = 1,
    whole: Annotated[
        bool, typer.Option("--whole", help="Take whole signals, of any length, instead of a stream.")
    ] = False,
    precision: Annotated[Precision, typer.Option(help="Of the stored weights.")] = Precision.float32,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
) -> None:
    """Write a network as an ONNX or torch.export file.

    The file is written only if its output equals that of PyTorch.
    """
    from ..checkpoint import load
    from ..export import export as write

    if output.exists() and not force:
        raise FileExistsError(f"{output} exists already (--force replaces it)")
    network = load(model, backend="reference")
    typer.echo(write(network, output, uf, frames=frames, whole=whole, precision=precision.value).sentence())
