"""The resampling filter as a buffer: exact in every dtype, constant under a compiler, absent from weights."""

import torch
from torch import nn

from slimse.nn import SincDownsample, SincUpsample


def run(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return module(x, module.initial_buffer(x), final=True)[0]


def test_half_precision_modules_keep_a_float32_filter():
    x = torch.randn(2, 300)
    for stage in (SincUpsample(), SincDownsample()):
        expected = run(stage, x)
        assert not stage.state_dict()
        assert torch.equal(run(stage.bfloat16().float(), x), expected)
        assert torch.equal(run(stage.half(), x), expected)


def test_double_modules_have_a_double_filter(relative_error):
    x = torch.randn(1, 300, dtype=torch.float64)
    up, down = SincUpsample().double(), SincDownsample().double()
    assert up.filters.dtype == torch.float64
    single = run(SincUpsample(), x.float())
    assert 0 < relative_error(single, run(up, x)) < 1e-6
    # Up and down again is the signal, away from its ends.
    assert relative_error(run(down, run(up, torch.sin(0.3 * torch.arange(600.0).double())[None]))[:, 200:-200],
                          torch.sin(0.3 * torch.arange(600.0).double())[None, 200:-200]) < 1e-3  # fmt: skip


def test_a_compiler_sees_one_constant_filter():
    graphs = []

    def record(module, inputs):
        graphs.append([node.target for node in module.graph.nodes if node.op.startswith("call")])
        return module.forward

    stage, x = SincUpsample(), torch.randn(1, 300)
    compiled = torch.compile(lambda x: run(stage, x), backend=record, fullgraph=True)
    assert torch.equal(compiled(x), run(stage, x))
    assert len(graphs) == 1
    assert len(graphs[0]) < 25, graphs[0]
