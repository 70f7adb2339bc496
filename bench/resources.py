"""Compile every kernel in every configuration that the paper preset launches, for GPUs that need not be there.

    python bench/resources.py --target sm_90

prints what each compiled kernel needs (registers, shared memory), the occupancy that these allow at most and the kind of
its matrix instructions, and exits with 1 if any on an NVIDIA target spills, does not fit, or multiplies half precision
or TF32 without tensor cores. `--quick` compiles a part that stands for the whole, `--json` prints one object a line.

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
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from slimse.kernels import decoder_block, encoder_block, launching
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from slimse.models.config import PRESETS

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
    "sm_90": Target(GPUTarget("cuda", 90, 32), 228 * KIB, 227 * KIB, 64),
    "sm_100": Target(GPUTarget("cuda", 100, 32), 228 * KIB, 227 * KIB, 64),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), 64 * KIB, 64 * KIB, 32),
}
DTYPES = {
    "fp32": (torch.float32, "ieee"),
    "tf32": (torch.float32, "tf32"),
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
    capability = target.gpu.arch if target.nvidia else 80
    with (
        mock.patch.object(triton.JITFunction, "run", compile_only),
        mock.patch.object(launching, "capability", lambda device: capability),
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
    """What is wrong with a kernel; spills and missing matrix instructions only count on NVIDIA."""
    found = []
    if resources.shared > target.shared_of_program:
        found.append(f"{resources.shared} bytes of shared memory: the chip has {target.shared_of_program}")
    if target.nvidia and resources.spilled:
        found.append(f"spills {resources.spilled} bytes")
    if target.nvidia and dtype != "fp32" and resources.instruction == "fma":
        found.append("no tensor-core instruction")
    return found


Case = tuple[str, Callable[[], object]]


class Empty:
    """Makes tensors without memory."""

    def __init__(self, dtype: torch.dtype, precision: str) -> None:
        self.dtype = dtype
        self.precision = precision

    def __call__(self, *shape: int) -> Tensor:
        """A tensor of the case's dtype."""
        return torch.empty(shape, dtype=self.dtype, device="meta")

    def widths(self, batch: int, positions: int, channels: int, *, quick: bool) -> Iterator[tuple[str, int | Tensor]]:
        """A width per position, all channels, and the narrow widths; ``quick`` stops after the first."""
        yield "ragged", torch.empty(batch, positions, dtype=torch.int32, device="meta")
        for uf in () if quick else reversed(PRESETS["paper"].ufs):
            yield f"{uf:g}", PRESETS["paper"].ufs.channels(uf, channels)


def encoder_cases(empty: Empty, batch: int, frames: int, *, quick: bool) -> Iterator[Case]:
    """Every encoder block, forward and backward."""
    config = PRESETS["paper"]
    for level in (3,) if quick else range(1, config.depth + 1):
        inputs, channels, stride = config.channels(level - 1), config.channels(level), config.stride
        time = frames * stride ** (config.depth - level + 1) + config.kernel_size - stride
        x = empty(batch, time, inputs)
        weights = (
            empty(channels, config.kernel_size * inputs),
            empty(channels),
            empty(channels, 2 * channels),
            empty(2 * channels),
        )
        positions = (time - config.kernel_size) // stride + 1
        grad = empty(batch, positions, channels)
        for name, width in empty.widths(batch, positions, channels, quick=quick):
            order = None if isinstance(width, int) else launching.by_width(width)
            args = (x, *weights, width, stride)
            options = {"order": order, "precision": empty.precision}
            yield (
                f"encoder {level} forward {name}",
                lambda args=args, options=options: encoder_block.encoder_block_forward(*args, **options),
            )
            yield (
                f"encoder {level} backward {name}",
                lambda args=args, options=options, grad=grad: encoder_block.encoder_block_backward(
                    grad, *args, **options
                ),
            )


def decoder_cases(empty: Empty, batch: int, frames: int, *, quick: bool) -> Iterator[Case]:
    """Every decoder block, forward (skip, bias and ReLU in the launch) and backward."""
    config = PRESETS["paper"]
    for level in (3,) if quick else range(1, config.depth + 1):
        outputs, channels, stride = config.channels(level - 1), config.channels(level), config.stride
        time = frames * stride ** (config.depth - level)
        x = empty(batch, time, channels)
        weights = (
            empty(channels, 2, channels),
            empty(channels, 2),
            empty(channels, config.kernel_size * outputs),
        )
        reach = config.kernel_size // stride
        grad = empty(batch, (time + reach - 1) * stride, outputs)
        for name, width in empty.widths(batch, time, channels, quick=quick):
            order = None if isinstance(width, int) else decoder_block.decoder_order(width, reach)
            args = (x, *weights, width, stride, outputs)
            options = {"skip": x, "order": order, "precision": empty.precision}
            finish = {"conv_bias": empty(outputs), "relu": level > 1}
            yield (
                f"decoder {level} forward {name}",
                lambda args=args, options=options, finish=finish: decoder_block.decoder_block_forward(
                    *args, **options, **finish
                ),
            )
            yield (
                f"decoder {level} backward {name}",
                lambda args=args, options=options, grad=grad: decoder_block.decoder_block_backward(
                    grad, *args, **options
                ),
            )


FAMILIES = (encoder_cases, decoder_cases)

QUICK = {"sm_80": ("bf16",), "sm_90": tuple(DTYPES), "sm_100": ("fp16",), "gfx942": ("fp32",)}
"""What `--quick` compiles: everything for one chip, one dtype for each of the others."""


def rows(target: str, dtype: str, *, quick: bool, match: str = "") -> Iterator[dict[str, object]]:
    """Compile and measure; one row for every kernel that differs from all before it."""
    empty = Empty(*DTYPES[dtype])
    seen = set()
    frames = round(SECONDS * 62.5)
    sizes = [(CLIPS, frames)] if quick else [(CLIPS, frames), (1, 1)]
    for batch, count in sizes:
        for family in FAMILIES:
            for name, call in family(empty, batch, count, quick=quick):
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
                        "kernel": f"{kernel.__module__.rsplit('.', 1)[-1]}.{kernel.__name__.strip('_')}",
                        **asdict(resources),
                        "wrong": complaints(resources, TARGETS[target], dtype),
                    }


def main() -> None:
    """Compile, print, and exit with 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", action="append", choices=TARGETS, help="default: all")
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="default: all")
    parser.add_argument("--match", default="", help="only cases whose name contains this")
    parser.add_argument("--quick", action="store_true", help="a part that stands for the whole")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a Markdown table")
    args = parser.parse_args()
    wrong = 0
    columns = ("target", "dtype", "case", "kernel", "registers", "spilled", "shared", "warps", "occupancy", "instruction")
    if not args.json:
        print("|", " | ".join(columns), "| wrong |\n|" + " --- |" * (len(columns) + 1))
    for target in args.target or TARGETS:
        for dtype in args.dtype or (QUICK[target] if args.quick else DTYPES):
            for row in rows(target, dtype, quick=args.quick, match=args.match):
                wrong += bool(row["wrong"])
                cells = [*(str(row[name]) for name in columns), "; ".join(row["wrong"])]
                print(json.dumps(row) if args.json else "| " + " | ".join(cells) + " |", flush=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
