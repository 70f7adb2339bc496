"""Compile every kernel in every configuration that the paper preset launches, ahead of time, without the target GPU.

    python -m bench.resources --target sm_90

prints what each compiled kernel needs (registers, shared memory), the occupancy that these allow at most and the kind
of its matrix instructions, and exits with 1 if any spills, does not fit, or (NVIDIA) multiplies half precision or TF32
without tensor cores. Without `--target` and `--dtype` all of them have their turn, in about an hour; Triton keeps what
it has compiled, so that a second call goes on where the first one was stopped. `--quick` compiles a part that stands
for the whole, `--summary` prints a line for every target and dtype, `--json` one object a line.

The launchers themselves are called, on tensors without memory, and Triton compiles what they launch instead of
launching it: arguments, constants and their specialisation are those of a real call. No time is measured here.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from slimse.kernels import decoder_block, encoder_block, launching, tiles
from slimse.kernels.diagonal_gru import diagonal_gru_backward, diagonal_gru_forward
from slimse.kernels.launching import by_width
from slimse.kernels.running_level import running_level_forward
from slimse.kernels.sinc_resample import sinc_resample_forward
from slimse.kernels.slim_conv1d import slim_conv1d_backward, slim_conv1d_forward
from slimse.kernels.slim_conv_transpose1d import slim_conv_transpose1d_backward, slim_conv_transpose1d_forward
from slimse.kernels.slim_gru import slim_gru_backward, slim_gru_forward
from slimse.kernels.slim_linear_glu import slim_linear_glu_backward, slim_linear_glu_forward
from slimse.kernels.slim_lstm import slim_lstm_backward, slim_lstm_forward
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from slimse.networks import SlimDemucsConfig

SECONDS, CLIPS = 4, 64


@dataclass(frozen=True)
class Target:
    """A GPU architecture: what one multiprocessor (AMD: one compute unit) has and what a program may take of it."""

    gpu: GPUTarget
    shared: int
    shared_of_program: int
    warps: int

    @property
    def nvidia(self) -> bool:
        """Whether it is NVIDIA's."""
        return self.gpu.backend == "cuda"


KIB = 1024
TARGETS = {
    "sm_80": Target(GPUTarget("cuda", 80, 32), 164 * KIB, 163 * KIB, 64),
    "sm_86": Target(GPUTarget("cuda", 86, 32), 100 * KIB, 99 * KIB, 48),
    "sm_89": Target(GPUTarget("cuda", 89, 32), 100 * KIB, 99 * KIB, 48),
    "sm_90": Target(GPUTarget("cuda", 90, 32), 228 * KIB, 227 * KIB, 64),
    "sm_100": Target(GPUTarget("cuda", 100, 32), 228 * KIB, 227 * KIB, 64),
    "sm_120": Target(GPUTarget("cuda", 120, 32), 100 * KIB, 99 * KIB, 48),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), 64 * KIB, 64 * KIB, 32),
}
DTYPES = {
    "fp32": (torch.float32, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "tf32x3": (torch.float32, "tf32x3"),
    "bf16": (torch.bfloat16, "ieee"),
    "fp16": (torch.float16, "ieee"),
}


class NoDriver:
    """Stands in for Triton's driver: names the target to compile for; there is nothing to launch on."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        """What to compile for."""
        return self.target

    def get_current_device(self) -> str:
        """A key for Triton's cache of compiled kernels."""
        return f"{self.target.backend}:{self.target.arch}"

    def get_current_stream(self, device: str) -> int:
        """Never used."""
        return 0


@contextmanager
def compiling(target: Target) -> Iterator[list[tuple[Any, Any]]]:
    """Within, launches compile for ``target`` and do no more; yields the list of (kernel, compiled) that grows."""
    compiled: list[tuple[Any, Any]] = []
    run = triton.JITFunction.run

    def compile_only(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        result = run(kernel, *args, grid=grid, warmup=True, **kwargs)
        compiled.append((kernel, result))
        return result

    driver.set_active(NoDriver(target.gpu))
    chip = tiles.Chip(target.gpu.arch if target.nvidia else 0, target.shared_of_program)
    with (
        mock.patch.object(triton.JITFunction, "run", compile_only),
        mock.patch.object(tiles, "reported_chip", lambda kind, index: chip),
        # Of the smallest chip.
        mock.patch.object(launching, "resident_programs", lambda device: 20 if target.nvidia else 0),
    ):
        yield compiled


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel needs."""

    registers: int
    spilled: int
    """Bytes per thread (AMD: registers) that did not fit."""
    shared: int
    warps: int
    occupancy: float
    """Warps that fit at once over those that the multiprocessor has room for."""
    instruction: str
    """Of its matrix products: a tensor-core (AMD: matrix-core) instruction, ``fma``, or ``none`` without products."""


def measure(compiled: Any, target: Target) -> Resources:
    """Read the resources off a compiled kernel."""
    instruction = "none"
    if "tt.dot" in compiled.asm["ttir"]:
        code = compiled.asm["ptx"] if target.nvidia else compiled.asm["amdgcn"]
        found = re.search(r"(wgmma\.mma_async|tcgen05\.mma|mma\.sync)[\w.:]*|v_mfma_\w+", code)
        instruction = found.group(0) if found else "fma"
    warps, shared = compiled.metadata.num_warps, compiled.metadata.shared
    if target.nvidia:
        registers, spilled = _usage(compiled.asm["cubin"])
        # Registers come in runs of 256 a warp; the system keeps 1 KiB of every program's shared memory.
        room = 65536 // (-(-registers * 32 // 256) * 256) // warps
        programs = min(32, target.warps // warps, room, target.shared // (shared + KIB))
    else:
        text = compiled.asm["amdgcn"]
        registers = _field(text, "vgpr_count")
        spilled = _field(text, "vgpr_spill_count")
        # Four SIMDs, each with 512 registers a lane, in runs of 8.
        room = 4 * min(target.warps // 4, 512 // (-(-registers // 8) * 8)) // warps
        programs = min(room, target.shared // shared if shared else room)
    return Resources(registers, spilled, shared, warps, programs * warps / target.warps, instruction)


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes of its stack and local memory."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers, stack, local = (int(re.search(rf"{key}:(\d+)", text).group(1)) for key in ("REG", "STACK", "LOCAL"))
    return registers, stack + local


def _field(text: str, name: str) -> int:
    """A number of the metadata of an AMD kernel."""
    return int(re.search(rf"\.{name}:\s+(\d+)", text).group(1))


def complaints(resources: Resources, target: Target, dtype: str) -> list[str]:
    """What is wrong with a kernel; missing matrix instructions only count on NVIDIA."""
    found = []
    if resources.shared > target.shared_of_program:
        found.append(f"{resources.shared} bytes of shared memory: the chip has {target.shared_of_program}")
    if resources.spilled:
        found.append(f"spills {resources.spilled} {'bytes' if target.nvidia else 'registers'}")
    if target.nvidia and dtype != "fp32" and resources.instruction == "fma":
        found.append("no tensor-core instruction")
    return found


Case = tuple[str, Callable[[], object]]

CONFIG = SlimDemucsConfig()


@dataclass(frozen=True)
class Cases:
    """Calls of the launchers on tensors without memory.

    Args:
        dtype: of all tensors.
        precision: of float32 products.
        batch: items.
        frames: of 16 ms.
        quick: only one level, and a width per position.
    """

    dtype: torch.dtype
    precision: str
    batch: int
    frames: int
    quick: bool

    def __iter__(self) -> Iterator[Case]:
        """All of them, by name."""
        for level in (3,) if self.quick else range(1, CONFIG.depth + 1):
            yield from self.encoder(level)
            yield from self.decoder(level)
        yield from self.layers()
        yield from self.recurrent()
        yield from self.signal()

    def empty(self, *shape: int) -> Tensor:
        """A tensor of the case's dtype."""
        return torch.empty(shape, dtype=self.dtype, device="meta")

    def widths(self, positions: int, channels: int) -> Iterator[tuple[str, int | Tensor]]:
        """A width per position, then all channels, then the narrow widths."""
        yield "ragged", torch.empty(self.batch, positions, dtype=torch.int32, device="meta")
        for uf in () if self.quick else reversed(CONFIG.ufs):
            yield f"{uf:g}", CONFIG.ufs.channels(uf, channels)

    def encoder(self, level: int) -> Iterator[Case]:
        """An encoder block, forward and backward."""
        inputs, channels, stride, kernel = CONFIG.channels(level - 1), CONFIG.channels(level), CONFIG.stride, 8
        positions = self.frames * stride ** (CONFIG.depth - level)
        x, grad = (
            self.empty(self.batch, (positions - 1) * stride + kernel, inputs),
            self.empty(self.batch, positions, channels),
        )
        shapes = ((channels, kernel * inputs), (channels,), (channels, 2 * channels), (2 * channels,))
        weights = [self.empty(*shape) for shape in shapes]
        for name, width in self.widths(positions, channels):
            order = None if isinstance(width, int) else by_width(width)
            given = (x, *weights, width, stride)
            call = {"order": order, "precision": self.precision}
            yield f"encoder {level} forward {name}", partial(encoder_block.encoder_block_forward, *given, **call)
            yield (
                f"encoder {level} backward {name}",
                partial(encoder_block.encoder_block_backward, grad, *given, **call),
            )

    def decoder(self, level: int) -> Iterator[Case]:
        """A decoder block, forward (skip, bias and ReLU in the launch) and backward."""
        outputs, channels, stride, reach = CONFIG.channels(level - 1), CONFIG.channels(level), CONFIG.stride, 2
        time = self.frames * stride ** (CONFIG.depth - level)
        x, grad = self.empty(self.batch, time, channels), self.empty(self.batch, (time + reach - 1) * stride, outputs)
        shapes = ((channels, 2, channels), (channels, 2), (channels, reach * stride * outputs))
        weights = [self.empty(*shape) for shape in shapes]
        finish = {"conv_bias": self.empty(outputs), "relu": level > 1}
        for name, width in self.widths(time, channels):
            order = None if isinstance(width, int) else decoder_block.decoder_order(width, reach)
            given = (x, *weights, width, stride, outputs)
            call = {"skip": x, "order": order, "precision": self.precision}
            forward = partial(decoder_block.decoder_block_forward, *given, **call, **finish)
            yield f"decoder {level} forward {name}", forward
            yield (
                f"decoder {level} backward {name}",
                partial(decoder_block.decoder_block_backward, grad, *given, **call),
            )

    def layers(self) -> Iterator[Case]:
        """Layers of their own: convolutions of 64 channels and 5 taps, and the pointwise layer with GLU."""
        channels, time, call = 64, 4 * self.frames, {"precision": self.precision}
        x, weight = self.empty(self.batch, time, channels), self.empty(channels, 5, channels)
        bias = self.empty(channels)
        for name, width in self.widths(time, channels):
            given = (x, weight, bias, width, width, 1, 2)
            narrow = x if isinstance(width, Tensor) else x[:, :, :width]
            yield f"conv forward {name}", partial(slim_conv1d_forward, *given, **call)
            yield f"conv backward {name}", partial(slim_conv1d_backward, narrow, *given, **call)
            yield f"transpose forward {name}", partial(slim_conv_transpose1d_forward, *given, **call)
            yield f"transpose backward {name}", partial(slim_conv_transpose1d_backward, narrow, *given, **call)
            for cut, shapes in (
                ("input", ((channels, 2 * channels), (2 * channels,))),
                ("output", ((channels, 2, channels), (channels, 2))),
            ):
                pointwise = (x, *(self.empty(*shape) for shape in shapes), width, cut, x)
                grad = narrow if cut == "output" else x
                yield f"glu {cut} forward {name}", partial(slim_linear_glu_forward, *pointwise, **call)
                yield f"glu {cut} backward {name}", partial(slim_linear_glu_backward, grad, *pointwise, **call)

    def recurrent(self) -> Iterator[Case]:
        """The bottleneck's grouped GRU, its LSTM, and the router's diagonal GRU."""
        batch, time, channels, groups = self.batch, self.frames, CONFIG.channels(CONFIG.depth), CONFIG.groups
        units = channels // groups
        x, state = self.empty(batch, time, channels), self.empty(groups, batch, units)
        records = (groups, units, 3)
        weights = [self.empty(*records, units), self.empty(*records, units), self.empty(*records), self.empty(*records)]
        call = {"precision": self.precision}
        for name, width in (*self.widths(time, units), ("1", units), ("0.5", units // 2)):
            given = (x, *weights, width, state)
            yield f"gru forward {name}", partial(slim_gru_forward, *given, **call)
            yield f"gru backward {name}", partial(slim_gru_backward, x, state, x, *given, **call)
        records = (channels, 4)
        weights = [self.empty(*records, channels), self.empty(*records, channels), self.empty(*records)]
        pair = (self.empty(batch, channels), self.empty(batch, channels))
        for name, width in (*self.widths(time, channels), ("0.125", channels // 8)):
            given = (x, *weights, width, pair)
            narrow = x if isinstance(width, Tensor) else x[:, :, :width]
            yield f"lstm forward {name}", partial(slim_lstm_forward, *given, **call)
            yield f"lstm backward {name}", partial(slim_lstm_backward, narrow, pair, narrow, *given, **call)
        units, state = 64, self.empty(batch, 64)
        given = (self.empty(batch, time, 3, units), self.empty(3, units), self.empty(3, units), state)
        out = self.empty(batch, time, units)
        yield "diagonal gru forward", partial(diagonal_gru_forward, *given)
        yield "diagonal gru backward", partial(diagonal_gru_backward, out, state, out, *given)

    def signal(self) -> Iterator[Case]:
        """Resampling and the running level, in float32 whatever the weights are."""
        x, filters = torch.empty(self.batch, 256 * self.frames, device="meta"), torch.empty(175, 64, device="meta")
        for history in (x[:, :0], x[:, :55]):
            for up in (True, False):
                name = f"resampling {'up' if up else 'down'}{' in pieces' if history.shape[1] else ''}"
                yield name, partial(sinc_resample_forward, x, history, filters, up, not history.shape[1])
        for sums in (x[:, :0], x[:, :3]):
            rates = (1 / 1600, 1 / 32000, 1 / 320)
            yield "running level", partial(running_level_forward, x, sums, sums, rates, 0.125, 1e-6)


QUICK = {"sm_90": ("bf16",)}
"""What `--quick` compiles: some minutes. All chips and number formats take an hour or more."""


def rows(target: str, dtype: str, *, quick: bool, match: str = "") -> Iterator[dict[str, Any]]:
    """Compile and measure; one row for every kernel that differs from all before it."""
    seen = set()
    for batch, frames in ((CLIPS, round(SECONDS * 62.5)), (1, 1))[: 1 if quick else 2]:
        for name, call in Cases(*DTYPES[dtype], batch, frames, quick):
            if match not in name:
                continue
            with compiling(TARGETS[target]) as compiled:
                call()
            for kernel, result in compiled:
                if result.hash in seen:
                    continue
                seen.add(result.hash)
                resources = measure(result, TARGETS[target])
                yield {
                    "target": target,
                    "dtype": dtype,
                    "case": f"{name}, batch {batch}",
                    "kernel": kernel.__name__,
                    **asdict(resources),
                    "wrong": complaints(resources, TARGETS[target], dtype),
                }


def summary(target: str, dtype: str, found: list[dict[str, Any]]) -> dict[str, object]:
    """One row for all of a target and dtype: the largest of what kernels need, and what is wrong with each."""
    return {
        "target": target,
        "dtype": dtype,
        "kernels": len(found),
        "spilling": sum(row["spilled"] > 0 for row in found),
        **{name: max((row[name] for row in found), default=0) for name in ("spilled", "registers", "shared")},
        "instructions": ", ".join(sorted({re.match(r"v_mfma|\w+", row["instruction"])[0] for row in found})),
        "wrong": [f"{row['case']}: {row['kernel']} {'; '.join(row['wrong'])}" for row in found if row["wrong"]],
    }


def main() -> None:
    """Compile, print, and exit with 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", action="append", choices=TARGETS, help="default: all")
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="default: all")
    parser.add_argument("--match", default="", help="only cases whose name contains this")
    parser.add_argument("--quick", action="store_true", help="a part that stands for the whole")
    parser.add_argument("--summary", action="store_true", help="a line for every target and dtype")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a Markdown table")
    args = parser.parse_args()
    wrong, first = 0, not args.json
    for target in args.target or (QUICK if args.quick else TARGETS):
        for dtype in args.dtype or (QUICK.get(target, ("bf16",)) if args.quick else DTYPES):
            found = rows(target, dtype, quick=args.quick, match=args.match)
            for row in (summary(target, dtype, list(found)),) if args.summary else found:
                wrong += bool(row["wrong"])
                if first:
                    print("|", " | ".join(row), "|\n|" + " --- |" * len(row))
                    first = False
                cells = [str(cell) for cell in (row | {"wrong": "; ".join(row["wrong"])}).values()]
                print(json.dumps(row) if args.json else "| " + " | ".join(cells) + " |", flush=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
