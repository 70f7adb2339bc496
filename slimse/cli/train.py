"""``slimse train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .terminal import a_path, is_quiet


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A .toml file or a recipe of the package: backbone, router, joint, scratch, fixed, gpu, voicebank."
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            parser=a_path,
            help="Folder with speech/, noise/ and perhaps rir/; or with pairs in noisy/ and clean/.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            parser=a_path,
            help="Folder for checkpoints, logs and weights; resumes what it holds.",
        ),
    ],
    valid: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", parser=a_path, help="Folder with noisy/ and clean/ pairs to validate on."),
    ] = None,
    init: Annotated[str | None, typer.Option(help="Weights to start from: a name or a .safetensors file.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps of the whole run, the final decay of the learning rate included.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Segments per step and process.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    precision: Annotated[str | None, typer.Option(help="Lightning's precision, such as 32-true or bf16-mixed.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that make mixtures.")] = None,
    devices: Annotated[
        int | None,
        typer.Option(help="GPUs, or processes on a CPU, that train in step. Default: all GPUs, or 1.", min=1),
    ] = None,
    nodes: Annotated[int, typer.Option(help="Machines; start the command on each with torchrun.", min=1)] = 1,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any key of the recipe, as in the file; repeatable: mixing.snr_low=-10."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights and mixtures.")] = None,
    device: Annotated[
        str, typer.Option(help="auto, cuda or cpu. A GPU, or a device named here, also makes the mixtures.")
    ] = "auto",
    backend: Annotated[str, typer.Option(help="What runs the layers: auto, reference or triton.")] = "auto",
    minutes: Annotated[float | None, typer.Option(help="Train for this long instead of for --steps.")] = None,
) -> None:
    """Train a model on your recordings, or resume a run."""
    try:
        from ..training.config import TrainConfig
        from ..training.run import train as run
    except ModuleNotFoundError as error:
        raise ValueError(f"training needs {error.name}: pip install 'slimse[train]'") from error
    from lightning.pytorch.utilities import rank_zero_only

    from ..checkpoint import load

    config = (
        TrainConfig.read(recipe)
        .with_settings(setting or ())
        .override(
            steps=steps, batch=batch, learning_rate=learning_rate, precision=precision, workers=workers, seed=seed
        )
    )
    initial = load(init).requires_grad_(True) if init else None
    weights = run(
        config,
        data,
        out,
        valid,
        initial,
        progress=not is_quiet(),
        devices=devices or "auto",
        nodes=nodes,
        device=device,
        minutes=minutes,
        backend=backend,
    )
    rank_zero_only(print)(f"weights: {weights}")
