"""Check every kernel against its twin and a tick of `StreamBatch` as a CUDA graph, time all, and write the report.

    python bench/gpu.py --out DIR [--tune] [--minutes 8]

needs a CUDA (or ROCm) device, Triton and this package installed. ``DIR`` gets ``checks.json``, ``times.json``,
``report.md`` and its plots, and with ``--tune`` a table of faster launch parameters of the blocks, which the package
uses once it lies in ``slimse/ops/tuned``. It exits with 1 if a kernel is further from float64 than it may be. What
there was no time for is called not measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import report
import torch
from cases import BLOCKS, MODEL, OPS, UFS, Case, Setup, describe
from torch.utils import _pytree as pytree

from slimse import SlimDemucs, SlimDemucsConfig, ops
from slimse.ops import launchers, tuning
from slimse.serving import StreamBatch

LIMITS = {"fp32": 1e-5, "tf32": 1e-3, "bf16": 1e-2}
"""Largest relative error of a result, against float64. That of a gradient is four times as large, or twice that of the
twin in the same number format: what a ReLU lets through can hang on the last bit."""
PASSES = (
    (("slimse", "sliced", "full", "masked"), (*MODEL, *BLOCKS, *OPS)),
    (("compiled",), (*BLOCKS, *OPS, *MODEL)),
)
"""Implementations and cases in the order of their turn: compiling takes longest, a network's longest of all."""


def arguments_of(name: str, width: int | torch.Tensor, dtype: torch.dtype, device: str) -> list[Any]:
    """Arguments of an op for a check."""

    def random(*shape: int) -> torch.Tensor:
        return (0.3 * torch.randn(shape)).to(device, dtype)

    batch, time, c = 2, 13, 48
    return {
        "encoder_block": lambda: [
            random(batch, 56, 3),
            random(c, 24),
            random(c),
            random(c, 2 * c),
            random(2 * c),
            width,
            4,
        ],
        "decoder_block": lambda: [
            *(random(batch, time, c), random(c, 2, c), random(c, 2), random(c, 40), width, 4, 5),
            *(random(batch, time, c), random(5), True),
        ],
        "slim_conv1d": lambda: [random(batch, 28, 20), random(c, 4, 20), random(c), 20, width, 2, 0, 1, True],
        "slim_conv_transpose1d": lambda: [random(batch, time, c), random(c, 4, 20), random(20), width, 20, 2, 1],
        "slim_linear_glu": lambda: [
            random(batch, time, c),
            random(c, 40),
            random(40),
            width,
            "input",
            random(batch, time, c),
        ],
        "diagonal_gru": lambda: [random(batch, time, 3, c), random(3, c), random(3, c), random(batch, c)],
        "slim_gru": lambda: [
            *(random(batch, time, 40), random(2, c, 3, 20), random(2, c, 3, c), random(2, c, 3), random(2, c, 3)),
            *(width, random(2, batch, c)),
        ],
        "slim_lstm": lambda: [
            *(random(batch, time, 20), random(c, 4, 20), random(c, 4, c), random(c, 4), width),
            (random(batch, c), random(batch, c)),
        ],
    }[name]()


def run(
    name: str, arguments: list[Any], dtype: torch.dtype, **choice: str
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Outputs of an op in ``dtype``, and the gradients of a fixed mixture of them."""

    def leaf(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        return value.detach().to(dtype, copy=True).requires_grad_()

    arguments = pytree.tree_map(leaf, arguments)
    outputs = pytree.tree_leaves(getattr(ops, name)(*arguments, **choice))
    leaves = [value for value in pytree.tree_leaves(arguments) if getattr(value, "requires_grad", False)]
    generator = torch.Generator().manual_seed(1)
    loss = sum((out * torch.randn(out.shape, generator=generator).to(out)).sum() for out in outputs)
    return [out.detach() for out in outputs], list(torch.autograd.grad(loss, leaves))


def distance(ours: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
    """Largest relative error of a tensor."""
    errors = [(a.double() - b).norm() / b.norm().clamp(min=1e-30) for a, b in zip(ours, exact, strict=True)]
    return max(float(error) for error in errors)


def check(name: str, kind: str, ragged: bool, device: str = "cuda") -> dict[str, Any]:
    """Largest relative error of results and of gradients of an op, against its twin in float64."""
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = kind == "tf32"
    width = torch.randint(0, 49, (2, 13), device=device) if ragged else 12
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    given = arguments_of(name, width, dtype, device)
    exact = run(name, given, torch.float64, backend="torch")
    twin = run(name, given, dtype, backend="torch")
    ours = run(name, given, dtype, backend="triton", precision="tf32" if kind == "tf32" else "ieee")
    error, gradient = (distance(mine, true) for mine, true in zip(ours, exact, strict=True))
    allowed = max(4 * LIMITS[kind], 2 * distance(twin[1], exact[1]))
    row = {"op": name, "kind": kind, "width": "ragged" if ragged else "uniform", "error": error, "gradient": gradient}
    return {**row, "gradient_limit": allowed, "within": error <= LIMITS[kind] and gradient <= allowed}


def check_all() -> list[dict[str, Any]]:
    """All checks, of kernels and of a tick as a CUDA graph; what fails to run is not within limits, and says why."""
    found = []
    cases = itertools.product(launchers.KERNELS, LIMITS, (False, True))
    for name, kind, ragged in [*cases, ("serving tick", "fp32", True)]:
        if name == "diagonal_gru" and ragged:
            continue
        try:
            row = check_tick() if name == "serving tick" else check(name, kind, ragged)
        except Exception as error:  # One kernel that does not compile must not hide what the others do.
            row = {"op": name, "kind": kind, "width": "ragged" if ragged else "uniform", "within": False}
            row["message"] = f"{type(error).__name__}: {str(error)[:500]}"
        found.append(row)
        print(("ok      " if row["within"] else "FAILED  ") + json.dumps(row), flush=True)
    return found


def check_tick(device: str = "cuda", config: str | SlimDemucsConfig = "dynamic", ticks: int = 12) -> dict[str, Any]:
    """Largest relative error of ticks of many streams replayed as a CUDA graph, against the same ticks without one.

    Streams join at every other tick, with widths and budgets by turns, which change at every tick. Where there is no
    CUDA, both run without a graph.
    """
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = SlimDemucs(config).eval().requires_grad_(False).to(device)
    batches = [StreamBatch(model, ticks, backend="torch", graph=graph and device == "cuda") for graph in (True, False)]
    error = 0.0
    for tick in range(ticks):
        samples, outputs = 0.05 * torch.randn(ticks, model.hop, device=device), []
        for batch in batches:
            if tick % 2 == 0:
                batch.join()
            for slot in batch.slots:
                if (tick + slot) % 3:
                    batch.set_uf(slot, model.config.ufs[(tick + slot) % len(model.config.ufs)])
                else:
                    batch.set_budget(slot, 0.5)
            out, ready = batch.tick(samples)
            outputs.append([out[slot, : ready[slot]] for slot in batch.slots if ready[slot]])
        error = max([error, distance(*outputs)] if outputs[1] else [error])
    row = {"op": "serving tick", "kind": "fp32", "width": "ragged", "error": error}
    return {**row, "within": error <= LIMITS["fp32"]}


def measure(call: Callable[[], Any], rounds: int = 20) -> dict[str, float]:
    """Seconds of one call, by the GPU's clock: median and the 20th and 80th percentile."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)]
    for start, end in marks:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    seconds = sorted(start.elapsed_time(end) / 1e3 for start, end in marks)
    return {"median": statistics.median(seconds), "p20": seconds[rounds // 5], "p80": seconds[-1 - rounds // 5]}


def points(seconds: float) -> Iterator[tuple[tuple[str, ...], Case, Setup]]:
    """Implementations, case and setup of all times, the most telling first."""
    for implementations, cases in PASSES:
        for batch, kind, case, uf in itertools.product((64, 16, 1), ("bf16", "tf32", "fp32"), cases, UFS):
            yield implementations, case, Setup(uf, batch, seconds, kind, "cuda")


@torch.inference_mode()
def time_all(deadline: float, seconds: float) -> tuple[list[dict[str, Any]], list[str]]:
    """Times as pytest-benchmark writes them, and notes on what is missing."""
    entries, failures, left = [], [], 0
    for implementations, case, setup in points(seconds):
        if time.monotonic() > deadline:
            left += 1
            continue
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = setup.kind == "tf32"
        torch.manual_seed(0)
        calls, work = case.build(setup)
        for implementation in [name for name in implementations if name in calls]:
            name = f"{case.label}, UF {setup.uf or 'mixture'}, batch {setup.batch}, {setup.kind}, {implementation}"
            try:
                stats = measure(calls[implementation])
            except Exception as error:  # The report says which; the others are worth having.
                failures.append(f"- {name} failed: {type(error).__name__}: {str(error)[:200]}")
            else:
                info = describe(case, setup, implementation, work)
                entries.append({"name": name, "stats": stats, "extra_info": info})
    notes = [f"{left} cases were not measured: the time was up."] if left else []
    return entries, [*notes, *failures]


def tune(deadline: float, seconds: float) -> dict[str, dict[str, Any]]:
    """Launch parameters that are faster than those chosen by default, as a table of `slimse.ops.tuning`.

    One parameter after the other, for the sum of the times at UF 1 and 0.25, batch 64.
    """
    found: dict[str, dict[str, Any]] = {}
    for case, kind in itertools.product(BLOCKS, ("bf16", "tf32")):
        module = importlib.import_module(f"slimse.kernels.{case.op}")
        select, override, seen = module.select_config, {}, {}

        def choose(shape: Any, dtype: Any, precision: str, capability: int) -> Any:
            default = select(shape, dtype, precision, capability)  # noqa: B023
            seen.update(key=tuning.key(case.op, *shape[1:], dtype, precision), default=default)  # noqa: B023
            return dataclasses.replace(default, **override)  # noqa: B023

        setups = [Setup(uf, 64, seconds, kind, "cuda") for uf in (1.0, 0.25)]
        calls = [case.build(setup)[0]["slimse"] for setup in setups]
        module.select_config = choose
        try:
            override = _descend(calls, override, seen, deadline)
        finally:
            module.select_config = select
        if override:
            found[seen["key"]] = dataclasses.asdict(dataclasses.replace(seen["default"], **override))
        if time.monotonic() > deadline:
            break
    return found


def _descend(
    calls: list[Callable[[], Any]], override: dict[str, int], seen: dict[str, Any], deadline: float
) -> dict[str, int]:
    """Change ``override``, which the calls read, to what makes them fastest; return it."""
    errors = importlib.import_module("triton.runtime.errors")

    def total() -> float:
        return sum(measure(call, 10)["median"] for call in calls)

    best = total()
    steps = {"block_t": (32, 64, 128), "block_h": (16, 32, 64), "num_warps": (4, 8), "num_stages": (2, 3, 4)}
    for name, values in steps.items() if seen["default"].fused else ():
        kept = dict(override)
        for value in values:
            if time.monotonic() > deadline:
                break
            override[name] = value
            try:
                now = total()
            except (errors.OutOfResources, errors.PTXASError):
                # A tile that does not fit this GPU is no candidate.
                continue
            if now < best:
                best, kept = now, dict(override)
        override.clear()
        override.update(kept)
    return override


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Check and time the kernels on this machine's GPU.")
    parser.add_argument("--out", type=Path, required=True, help="folder for checks, times and the report")
    parser.add_argument("--tune", action="store_true", help="look for faster launch parameters of the blocks")
    parser.add_argument("--minutes", type=float, default=8.0, help="time in all")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a clip")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"no CUDA device: torch {torch.__version__} sees none; nothing was measured", file=sys.stderr)
        return 2
    if importlib.util.find_spec("triton") is None:
        print("Triton is not installed; nothing was measured", file=sys.stderr)
        return 2
    start = time.monotonic()
    end = start + 60 * arguments.minutes - 15
    arguments.out.mkdir(parents=True, exist_ok=True)
    checks = check_all()
    (arguments.out / "checks.json").write_text(json.dumps(checks, indent=1))
    if arguments.tune:
        table = arguments.out / tuning.table_name(torch.device("cuda"))
        table.write_text(json.dumps(tune(start + 0.5 * (end - start), arguments.seconds), indent=1) + "\n")
    entries, notes = time_all(end, arguments.seconds)
    versions = f"torch {torch.__version__}, triton {importlib.import_module('triton').__version__}"
    (arguments.out / "times.json").write_text(json.dumps({"benchmarks": entries, "versions": versions}, indent=1))
    bad = [row for row in checks if not row["within"]]
    summary = f"{versions}. {len(checks) - len(bad)} of {len(checks)} checks against float64 are within their limits."
    print(report.write(entries, arguments.out, [summary, *(f"- FAILED: {json.dumps(row)}" for row in bad), *notes]))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
