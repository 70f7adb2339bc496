"""Time of a live frame in every implementation at every width, in one run: see `report.py` for the plot.

    pytest bench/test_streaming.py --benchmark-json=live.json && python -m bench.report live.json --out bench/results

On one CPU thread: ``slimse`` is the numba runtime (also with int8 weights), ``sliced`` eager PyTorch on views of the
weights, ``compiled`` `torch.compile` with one graph per UF (needs a C++ compiler; minutes), ``onnx`` ONNX Runtime with
one session per UF (needs onnx, onnxscript and onnxruntime). The first three hold the weights once, ONNX Runtime once
per session.
"""

import importlib.util
import platform
import shutil

import pytest
import torch

from bench import streaming
from slimse import SlimModel
from slimse.profiling import profile

MODEL = SlimModel().eval().requires_grad_(False)
IMPLEMENTATIONS = {
    "slimse": ("numba", "fp32"),
    "slimse, int8": ("int8", "int8 weights"),
    "sliced": ("eager", "fp32"),
    "compiled": ("inductor", "fp32"),
    "onnx": ("onnx", "fp32"),
}
"""Name in the report: that in `streaming.py`, and the number format."""


@pytest.fixture(scope="module")
def calls():
    """All that can run here."""
    torch.set_num_threads(1)
    onnx = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
    return streaming.cases(MODEL, onnx=onnx, inductor=bool(shutil.which("c++") or shutil.which("g++")))


@pytest.mark.parametrize("uf", MODEL.ufs, ids=lambda uf: f"uf{uf:g}")
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_frame(benchmark, calls, implementation, uf):
    """One implementation at a UF."""
    own, kind = IMPLEMENTATIONS[implementation]
    if (own, uf) not in calls:
        pytest.skip(f"{own} cannot run here")
    torch.set_num_threads(1)
    cost = next(width for width in profile(MODEL).widths if width.uf == uf)
    benchmark.extra_info.update(
        {
            "op": "step",
            "label": "live frame",
            "implementation": implementation.split(",")[0],
            "uf": uf,
            "batch": 1,
            "seconds": MODEL.geometry.hop / MODEL.sample_rate,
            "kind": kind,
            "macs": cost.macs_per_sample * MODEL.geometry.hop,
            "bytes": cost.weight_bytes_per_frame // (4 if own == "int8" else 1),
            "roofline": None,
            "device": f"CPU ({platform.machine()}, 1 thread)",
            "torch": torch.__version__,
        }
    )
    benchmark.pedantic(calls[own, uf], rounds=300, warmup_rounds=30)
