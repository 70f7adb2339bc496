"""Look for faster launch parameters of the blocks on this machine's GPU.

    python -m bench.tune --out DIR [--minutes 8]

writes a table of `slimse.ops.tuning` into ``DIR``, which the package uses once it lies in ``slimse/ops/tuned``. The
same command again goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.cases import BLOCKS
from bench.checks import LIMITS, distance
from bench.device import Gpu, measure
from bench.points import Setup
from slimse.ops import tuning

STEPS = {"block_t": (32, 64, 128), "block_h": (16, 32, 64), "num_warps": (4, 8), "num_stages": (2, 3, 4)}
"""Launch parameters that are tuned, and their candidates."""


@torch.no_grad()
def tune(device: Any, table: dict[str, Any], deadline: float, seconds: float, save: Callable[[], None]) -> list[str]:
    """Add to ``table``, one of `slimse.ops.tuning`, the fastest launch parameters of what it lacks; say what failed.

    One parameter after the other, for the sum of the times at UF 1 and 0.25, batch 64.
    """
    failures = []
    for case, kind in itertools.product(BLOCKS, ("bf16", "tf32")):
        module = importlib.import_module(f"slimse.kernels.{case.op}")
        select, override, seen = module.select_config, {}, {}

        def choose(shape: Any, dtype: Any, precision: str, capability: int) -> Any:
            default = select(shape, dtype, precision, capability)  # noqa: B023
            seen.update(key=tuning.key(case.op, *shape[1:], dtype, precision), default=default)  # noqa: B023
            return dataclasses.replace(default, **override)  # noqa: B023

        if time.monotonic() > deadline:
            break
        setups = [Setup(uf, 64, seconds, kind, device.tensors, device.backend) for uf in (1.0, 0.25)]
        calls = [case.build(setup)[0]["slimse"] for setup in setups]
        module.select_config = choose
        try:
            expected = [call() for call in calls]
            # With an entry in the table nothing is chosen; one without parameters says that none are better.
            known = not seen or seen["key"] in table
            if not known and _descend(device, calls, expected, override, seen["default"], LIMITS[kind], deadline):
                best = dataclasses.replace(seen["default"], **override)
                table[seen["key"]] = dataclasses.asdict(best) if override else {}
                save()
        except Exception as error:  # The other blocks are worth tuning.
            failures.append(f"- tuning {case.label} in {kind} failed: {type(error).__name__}: {str(error)[:200]}")
        finally:
            module.select_config = select
    return failures


def _descend(
    device: Any,
    calls: list[Callable[[], Any]],
    expected: list[torch.Tensor],
    override: dict[str, int],
    default: Any,
    limit: float,
    deadline: float,
) -> bool:
    """Change ``override``, which the calls read, to what makes them fastest; whether there was time for all of it."""

    def total() -> float:
        if distance([call() for call in calls], [out.double() for out in expected]) > limit:
            raise ValueError("another result")
        return sum(measure(device, [call])["median"] for call in calls)

    best = total()
    for name, values in STEPS.items() if default.fused else ():
        kept = dict(override)
        for value in values:
            if time.monotonic() > deadline:
                return False
            override[name] = value
            try:
                now = total()
            except Exception:
                # A tile that does not compile, does not fit this GPU or gives another result is no candidate.
                continue
            if now < best:
                best, kept = now, dict(override)
        override.clear()
        override.update(kept)
    return True


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the table")
    parser.add_argument("--minutes", type=float, default=8.0, help="time in all")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a clip")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"no CUDA device: torch {torch.__version__} sees none; nothing was tuned", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / tuning.table_name(torch.device("cuda"))
    table = json.loads(path.read_text()) if path.is_file() else {}

    def save() -> None:
        part = path.with_suffix(".part")
        part.write_text(json.dumps(table, indent=1) + "\n")
        part.replace(path)

    tuning.use(arguments.out)
    failures = tune(Gpu(), table, time.monotonic() + 60 * arguments.minutes, arguments.seconds, save)
    print("\n".join([*failures, f"{len(table)} entries in {path}"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
