"""Check every kernel against its reference in float64, and a tick of `StreamBatch` as a CUDA graph against one without.

    python -m bench.checks OP KIND

runs the checks of one op in one number format on this machine's GPU, and prints a line of JSON for each; `gpu.py` runs
them all, several at a time. ``model`` is the whole network of the paper, whose tiles are those of real use. Memory that
is allocated is full of NaN, so that what a kernel forgets to write shows.

A verdict is ``"ok"``, ``"wrong"`` (too far from float64, or other bits in a second run) or ``"failed"`` (no result).
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree

from slimse import SlimDemucsConfig, SlimModel, ops
from slimse.ops import launchers
from slimse.ops.verdicts import poisoned
from slimse.serving import StreamBatch

LIMITS = {"bf16": 1e-2, "fp16": 2e-3, "tf32": 1e-3, "fp32": 1e-5, "tf32x3": 1e-5}
"""Largest relative error of a result, against float64. That of a gradient is four times as large, or twice that of the
reference in the same number format: what a ReLU lets through can hang on the last bit."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""By number format; all others are float32, computed in another way."""
TICK_CHECK = ("serving tick", "fp32")
CHECKS = [*itertools.product(("model", *launchers.KERNELS), LIMITS), TICK_CHECK]
"""Op and number format, those that take longest first."""
STEPS = 9
"""Positions of an op's check."""


def arguments_of(name: str, width: int | torch.Tensor, dtype: torch.dtype, device: str) -> list[Any]:
    """Arguments of an op for a check."""

    def random(*shape: int) -> torch.Tensor:
        return (0.3 * torch.randn(shape)).to(device, dtype)

    batch, time, c = 2, STEPS, 48
    return {
        "encoder_block": lambda: [
            random(batch, 4 * time + 4, 3),
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
        "slim_conv1d": lambda: [random(batch, 2 * time + 2, 20), random(c, 4, 20), random(c), 20, width, 2, 0, 1, True],
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
    """Largest relative error of a tensor; NaN if there is one."""
    errors = [(a.double() - b).norm() / b.norm().clamp(min=1e-30) for a, b in zip(ours, exact, strict=True)]
    # Python's own max forgets a NaN that does not come first.
    return float(torch.stack(errors).max()) if errors else 0.0


def precision_of(kind: str) -> str:
    """Of float32 products, in a number format."""
    return kind if kind.startswith("tf32") else "ieee"


def check(name: str, kind: str, ragged: bool, device: str = "cuda") -> dict[str, Any]:
    """Largest relative error of results and of gradients of an op, and whether they are the same bits again."""
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = kind == "tf32"
    width = torch.randint(0, 49, (2, STEPS), device=device) if ragged else 12
    dtype = DTYPES.get(kind, torch.float32)
    given = arguments_of(name, width, dtype, device)
    exact = run(name, given, torch.float64, backend="reference")
    reference = run(name, given, dtype, backend="reference")
    with poisoned():
        ours, again = (run(name, given, dtype, backend="triton", precision=precision_of(kind)) for _ in range(2))
    row = _row(name, kind, ragged, ours, reference, exact, LIMITS[kind])
    same = all(torch.equal(a, b) for a, b in zip(pytree.tree_leaves(ours), pytree.tree_leaves(again), strict=True))
    return {**row, "deterministic": same, "verdict": row["verdict"] if same else "wrong"}


def check_tick(device: str = "cuda", config: str | SlimDemucsConfig = "dynamic", ticks: int = 12) -> dict[str, Any]:
    """Largest relative error of ticks of many streams replayed as a CUDA graph, against the same ticks without one.

    Streams join at every other tick, with widths and budgets by turns, which change at every tick. Where there is no
    CUDA, both run without a graph.
    """
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = SlimModel(config).eval().requires_grad_(False).to(device)
    runtimes = ("cuda-graph" if device == "cuda" else "eager", "eager")
    batches = [StreamBatch(model, ticks, runtime=runtime) for runtime in runtimes]
    errors = [0.0]
    for tick in range(ticks):
        samples, outputs = 0.05 * torch.randn(ticks, model.geometry.hop, device=device), []
        for batch in batches:
            if tick % 2 == 0:
                batch.join()
            for slot in batch.slots:
                if (tick + slot) % 3:
                    batch.set_uf(slot, model.ufs[(tick + slot) % len(model.ufs)])
                else:
                    batch.set_budget(slot, 0.5)
            out, ready = batch.tick(samples)
            outputs.append([out[slot, : ready[slot]] for slot in batch.slots if ready[slot]])
        errors.append(distance(*outputs))
    error = float(torch.tensor(errors).max())
    row = {"op": "serving tick", "kind": "fp32", "width": "ragged", "error": error}
    return {**row, "verdict": "ok" if error <= LIMITS["fp32"] else "wrong"}


def check_model(
    kind: str, ragged: bool, device: str = "cuda", config: str | SlimDemucsConfig = "paper", seconds: float = 2.0
) -> dict[str, Any]:
    """Largest relative error of a network on kernels, and with a width per frame of its weights' gradients."""
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = kind == "tf32"
    dtype = DTYPES.get(kind, torch.float32)
    options = {"backend": "triton", "precision": precision_of(kind)}
    first = SlimModel(config).to(dtype)
    noisy = 0.1 * torch.randn(2, 1, int(seconds * first.sample_rate))
    ufs = torch.tensor(first.ufs)[torch.randint(4, (2, first.geometry.frames(noisy.shape[2])))].to(device)
    results = []
    for choice, number in (
        ({"backend": "reference"}, torch.float64),
        ({"backend": "reference"}, dtype),
        (options, dtype),
    ):
        model = SlimModel(config, **choice)
        model.load_state_dict(first.state_dict())
        model = model.to(device, number)
        with poisoned():
            out = model(noisy.to(dtype).to(device, number), ufs if ragged else 0.25)
            if ragged:
                (out / out.detach().norm()).square().sum().backward()
        grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        results.append(([out.detach()], grads))
    exact, reference, ours = results
    return _row("model", kind, ragged, ours, reference, exact, LIMITS[kind] + 2 * distance(reference[0], exact[0]))


def _row(
    name: str,
    kind: str,
    ragged: bool,
    ours: tuple[list[torch.Tensor], list[torch.Tensor]],
    reference: tuple[list[torch.Tensor], list[torch.Tensor]],
    exact: tuple[list[torch.Tensor], list[torch.Tensor]],
    limit: float,
) -> dict[str, Any]:
    """What a check found: errors of results and gradients, and whether they are within their limits."""
    error, gradient = (distance(mine, true) for mine, true in zip(ours, exact, strict=True))
    allowed = max(4 * LIMITS[kind], 2 * distance(reference[1], exact[1]))
    row = {"op": name, "kind": kind, "width": "ragged" if ragged else "uniform", "error": error, "gradient": gradient}
    right = error <= limit and gradient <= allowed
    return {**row, "limit": limit, "gradient_limit": allowed, "verdict": "ok" if right else "wrong"}


def checks_of(name: str, kind: str, device: str = "cuda") -> Iterator[dict[str, Any]]:
    """The checks of an op in a number format; what fails to run says why."""
    widths = (True,) if (name, kind) == TICK_CHECK else (False,) if name == "diagonal_gru" else (False, True)
    for ragged in widths:
        try:
            if (name, kind) == TICK_CHECK:
                yield check_tick(device)
            else:
                yield check_model(kind, ragged, device) if name == "model" else check(name, kind, ragged, device)
        except Exception as error:  # One kernel that does not compile must not hide what the others do.
            row = {"op": name, "kind": kind, "width": "ragged" if ragged else "uniform", "verdict": "failed"}
            yield {**row, "message": f"{type(error).__name__}: {str(error)[:500]}"}


if __name__ == "__main__":
    for found in checks_of(*sys.argv[1:]):
        print(json.dumps(found), flush=True)
