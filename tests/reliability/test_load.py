"""Batches whose streams join, leave, fail and overrun."""

import pytest
import torch

from bench.reliability.load import Service
from slimse import SlimModel


@pytest.mark.parametrize("runtime", ["eager", "numba"])
def test_one_bad_stream_disturbs_no_other_and_overload_loses_no_sound(runtime):
    pytest.importorskip("numba", reason="the compiled path needs numba")
    model = SlimModel("small").eval().requires_grad_(False)
    service = Service(model, 3, runtime, seed=3)
    with torch.no_grad():
        service.run(600)
    assert service.worst < 1e-5
    assert {"joined", "left", "failed", "narrowed", "refused: full"} <= {
        name for name, count in service.counts.items() if count
    }
