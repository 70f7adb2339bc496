"""One frame of a stream as a `torch.export` program, of PyTorch's own operations alone."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..model import SlimModel
from ..ops.registration import decompositions
from .check import FRAMES, LIMIT, check_error, relative_error, test_signal


class Frame(nn.Module):
    """`SlimModel.step` of one frame at one UF, with the tensors of the state as separate arguments.

    Args:
        model: that runs.
        uf: of every frame.
    """

    def __init__(self, model: SlimModel, uf: float) -> None:
        super().__init__()
        self.model, self.uf = model, uf
        with torch.no_grad():
            # The sizes of a state settle with the first output.
            geometry = model.geometry
            silence = torch.zeros(1, geometry.first + (geometry.silent + 3) * geometry.hop)
            self.state = model.step(silence, model.initial_state(), uf)[1]

    def forward(self, samples: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """``[1, hop]`` and a state to the next ``[1, hop]`` outputs and the new state."""
        leaves, structure = pytree.tree_flatten(self.state)
        rest = iter(state)
        filled = [next(rest) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        out, new = self.model.step(samples, pytree.tree_unflatten(filled, structure), self.uf)
        return out, *tensors_of(new)


def tensors_of(state: Any) -> list[Tensor]:
    """The tensors of a state, in order."""
    return [leaf for leaf in pytree.tree_leaves(state) if isinstance(leaf, Tensor)]


def write_program(path: Path, model: SlimModel, uf: float) -> float:
    """Write the program of one UF, after a check over `FRAMES` frames; gives the relative error.

    Its example inputs are silence and the state of a stream that has heard nothing else: where to begin.

    Raises:
        ValueError: if the program is not equal to the network.
    """
    frame = Frame(model, uf).eval()
    inputs = (torch.zeros(1, model.geometry.hop), *tensors_of(frame.state))
    table = torch.export.default_decompositions()
    table.update(decompositions())
    with warnings.catch_warnings():
        # PyTorch's own, of its next version.
        warnings.simplefilter("ignore", FutureWarning)
        program = torch.export.export(frame, inputs, strict=False).run_decompositions(table)
    noisy = torch.from_numpy(test_signal(FRAMES * model.geometry.hop))[None]
    run, state, outputs = program.module(), list(inputs[1:]), []
    with torch.no_grad():
        for hop in noisy.split(model.geometry.hop, dim=1):
            out, *state = run(hop, *state)
            outputs.append(out)
        expected = model.step(noisy, frame.state, uf)[0]
    error = relative_error(torch.cat(outputs, dim=1).flatten().numpy(), expected)
    check_error(error, LIMIT, f"UF {uf:g}")
    # Not to the path itself: its temporary name would be complained of.
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    path.write_bytes(buffer.getvalue())
    return error
