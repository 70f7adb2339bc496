"""How long a call of an op keeps the host busy, without a GPU: kernels are not launched, everything before is.

    python -m bench.host

prints, per op, microseconds of a forward call on kernels that keeps its gradient, which goes through the registered op,
and of one that does not. What a CUDA driver adds to a launch is not in it.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

os.environ["TRITON_INTERPRET"] = "1"  # Before kernels are imported: they take tensors on the CPU then.

import torch
from slimse.kernels import launching

from bench.checks import STEPS, arguments_of
from slimse import ops
from slimse.ops import launchers


def microseconds(calls: Sequence[Callable[[], Any]], rounds: int = 400) -> list[float]:
    """Of each call by turns, the 20th percentile: others use the machine."""
    times: list[list[int]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, found in zip(calls, times, strict=True):
            start = time.perf_counter_ns()
            call()
            found.append(time.perf_counter_ns() - start)
    return [sorted(found)[rounds // 5] / 1e3 for found in times]


def _kept(name: str, given: list[Any]) -> None:
    """A call whose gradient is kept."""
    with torch.enable_grad():
        getattr(ops, name)(*given, backend="triton")


@torch.no_grad()
def main() -> None:
    """Print a table."""
    torch.set_num_threads(1)
    print("| op | width | with gradient, us | without, us | ratio |\n| --- | --- | ---: | ---: | ---: |")
    with mock.patch.object(launching, "launch", lambda *_, **__: None):
        for name in launchers.KERNELS:
            for ragged in (False, True) if name != "diagonal_gru" else (False,):
                width = torch.randint(0, 49, (2, STEPS)) if ragged else 12
                given = arguments_of(name, width, torch.float32, "cpu")
                call = functools.partial(getattr(ops, name), *given, backend="triton")

                x = given[0].clone().requires_grad_()
                registered, direct = microseconds([functools.partial(_kept, name, [x, *given[1:]]), call])
                kind = "ragged" if ragged else "uniform"
                print(f"| {name} | {kind} | {registered:.1f} | {direct:.1f} | {registered / direct:.2f} |", flush=True)


if __name__ == "__main__":
    main()
