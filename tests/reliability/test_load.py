"""Batches whose streams join, leave, fail and overrun."""

import pytest
import torch
from load import Service

from slimse import SlimDemucs


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_one_bad_stream_disturbs_no_other_and_overload_loses_no_sound(backend):
    pytest.importorskip("numba", reason="the compiled path needs numba")
    model = SlimDemucs("small").eval().requires_grad_(False)
    service = Service(model, 3, backend, seed=3)
    with torch.no_grad():
        service.run(600)
    assert service.worst < 1e-5
    assert {"joined", "left", "failed", "narrowed", "refused: full"} <= {
        name for name, count in service.counts.items() if count
    }
