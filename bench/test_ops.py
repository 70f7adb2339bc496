"""Times of every op, block and the whole network: ``pytest bench --benchmark-json=times.json``, then `report.py`.

On a CPU a reduced set: one clip of half a second, float32, no compiled baselines. ``--full`` takes all.
"""

import pytest
import torch

from bench.cases import BLOCKS, MODEL, OPS, UFS, compiled, describe
from bench.points import Setup

ON_GPU = torch.cuda.is_available()
IMPLEMENTATIONS = ("slimse", "sliced", "compiled", "full", "masked")


def points(config: pytest.Config) -> list[tuple[int, str, float]]:
    """Batch, number format and seconds of all points."""
    if ON_GPU or config.getoption("full"):
        kinds = ("fp32", "tf32", "bf16") if ON_GPU else ("fp32", "bf16")
        return [(batch, kind, 4.0) for batch in (1, 16, 64) for kind in kinds]
    return [(1, "fp32", 0.5)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """All cases at all points."""
    metafunc.parametrize("case", [*BLOCKS, *OPS, *MODEL], ids=lambda case: case.label.replace(" ", "_"))
    metafunc.parametrize("uf", UFS, ids=lambda uf: "mixture" if uf is None else f"uf{uf:g}")
    metafunc.parametrize("point", points(metafunc.config), ids=lambda point: f"batch{point[0]}-{point[1]}")
    metafunc.parametrize("implementation", IMPLEMENTATIONS)


@torch.inference_mode()
def test_time(benchmark, case, uf, point, implementation, request):
    """One implementation of a case at a UF and a point."""
    if implementation == "compiled" and not (ON_GPU or request.config.getoption("full")):
        pytest.skip("compiled baselines take minutes: --full")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    batch, kind, seconds = point
    setup = Setup(uf, batch, seconds, kind, "cuda" if ON_GPU else "cpu", "triton" if ON_GPU else "auto")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = kind == "tf32"
    calls, work = case.build(setup)
    if implementation == "compiled":
        calls |= dict.fromkeys(["compiled"], *compiled(case, setup, [calls]))
    if implementation not in calls:
        pytest.skip("one width per call only" if uf is None else "there is no such baseline")

    def call() -> None:
        calls[implementation]()
        if ON_GPU:
            torch.cuda.synchronize()

    device = {"device": torch.cuda.get_device_name()} if ON_GPU else {}
    benchmark.extra_info.update(describe(case, setup, implementation, work, **device))
    benchmark.pedantic(call, rounds=20 if ON_GPU else 5, warmup_rounds=5 if ON_GPU else 1)
