"""Networks that nobody wrote for slimming: right at every width."""

import copy
import pickle

import pytest
import torch

import slimse
from bench.networks import NETWORKS, EveryLayer, TfNetwork
from slimse.nn import SlimLayer
from slimse.slimmify.leaves import LEAVES

UFS = (0.125, 0.25, 0.5, 1.0)
CUT = {
    "asteroid ConvTasNet": {"masker.TCN.0.shared_block.0", "masker.TCN.1.shared_block.0"},
    "asteroid ConvTasNet, causal": {"masker.TCN.0.shared_block.0", "masker.TCN.1.shared_block.0"},
    "asteroid DPRNN": {"masker.net.0.intra_RNN.rnn", "masker.net.0.inter_RNN.rnn", "masker.net_gate.0"},
    "asteroid SuDoRM-RF": {"masker.sm.0.proj_1x1.conv", "masker.sm.1.proj_1x1.conv"},
    "asteroid LSTMMasker": {"masker.masker.0.rnn"},
    "transformers Whisper encoder": {"conv1", "layers.0.self_attn.q_proj", "layers.1.fc1"},
    "torch.nn.Transformer": {
        "encoder.layers.0.self_attn",
        "encoder.layers.0.linear1",
        "decoder.layers.0.multihead_attn",
    },
    "2-D convolutions with GRUs": {"down.0.0", "up.0.0", "up.1.0", "along_frequency", "along_time"},
    "every layer": {
        *("embedding", "blocks.0.0", "blocks.1.0", "blocks.1.4", "blocks.1.5", "blocks.2.0", "flat.0", "features.0"),
        *("lstm", "gru", "attention"),
    },
}
"""Layers whose outputs have to be cut."""


def relative(found, expected):
    return float((found - expected).abs().square().sum() / expected.abs().square().sum()) ** 0.5


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_at_every_width(name):
    case = NETWORKS[name]
    if case.missing:
        pytest.skip(case.missing)
    network = case.make(True).eval()
    slim = slimse.slimmify(copy.deepcopy(network), case.inputs(network, 1, 2))
    cut = {layer for group in slim.slimming.groups if not group.full for layer in group.layers}
    assert cut >= CUT[name]
    inputs = case.inputs(network, 2, 3)
    outputs = {}
    for uf in UFS:
        small = slimse.extract(slim, uf)
        with slimse.at(uf):
            outputs[uf] = out = slim(*inputs)
        out, expected = (x if isinstance(x, torch.Tensor) else x[0] for x in (out, small(*inputs)))
        assert out.isfinite().all()
        assert relative(out, expected) < 1e-5
    first = (lambda x: x if isinstance(x, torch.Tensor) else x[0])(network(*inputs))
    assert relative(out, first) < 1e-5
    macs = [width.macs for width in slim.slimming.widths]
    assert macs == sorted(set(macs))
    if not slim.slimming.refusal:
        with slimse.at(torch.tensor([0.125, 0.5])):
            mixed = slim(*inputs)
        for item, uf in enumerate((0.125, 0.5)):
            parts = (x if isinstance(x, torch.Tensor) else x[0] for x in (mixed, outputs[uf]))
            found, alone = (part[item] for part in parts)
            assert relative(found, alone) < 1e-4


def test_every_kind_of_layer_is_there_and_cut():
    slim = slimse.slimmify(EveryLayer(), torch.randint(20, (1, 8)))
    kinds = {type(layer) for layer in slim.modules() if isinstance(layer, SlimLayer)}
    kinds |= {type(layer) for layer in slimse.slimmify(TfNetwork(8, 8, 12), torch.randn(1, 8, 5) + 0j).modules()}
    known = {leaf.kind for leaf in LEAVES.values()}
    assert known <= kinds


def test_every_layer_trains_copies_and_keeps_its_state_dict():
    tokens = torch.randint(20, (2, 8))
    slim = slimse.slimmify(EveryLayer(), tokens)
    with slimse.at(0.25):
        slim(tokens).square().sum().backward()
    unused = [name for name, p in slim.named_parameters() if p.grad is None]
    assert not unused
    slim.eval()
    with slimse.at(0.25), torch.no_grad():
        expected = slim(tokens)
        assert torch.equal(pickle.loads(pickle.dumps(slim))(tokens), expected)
        other = slimse.slimmify(EveryLayer(), tokens).eval()
        other.load_state_dict(slim.state_dict())
        assert torch.equal(other(tokens), expected)
        half = copy.deepcopy(slim).bfloat16()(tokens)
    assert relative(half.float(), expected) < 0.05


def test_batch_norms_have_statistics_of_every_width():
    network = TfNetwork(8, 8, 12)
    plain = copy.deepcopy(network.state_dict())
    slim = slimse.slimmify(network, torch.randn(1, 8, 6) + 0j)
    batches = [torch.randn(2, 8, 6, dtype=torch.complex64) for _ in range(3)]
    norm = slim.down[0][1]
    before = norm.running_mean.clone()
    slimse.calibrate(slim, batches)
    assert torch.equal(norm.running_mean, before)
    assert norm.narrow_batches.tolist() == [3, 3, 3]
    assert not norm.narrow_mean[0, 1:].any()
    assert norm.narrow_mean[1, :2].all()
    # In one layer, the statistics are those that the small network has in training.
    small = slimse.extract(slim, 0.25).train()
    small.down[0][1].reset_running_stats()
    small.down[0][1].momentum = None
    for batch in batches:
        small(batch)
    torch.testing.assert_close(small.down[0][1].running_mean, slim.down[0][1].narrow_mean[1, :2])
    torch.testing.assert_close(small.down[0][1].running_var, slim.down[0][1].narrow_var[1, :2])
    with pytest.raises(ValueError, match=r"down\.0\.1 has no statistics of uf = 0\.3"), slimse.at(0.3):
        slim(batches[0])
    slim.load_state_dict(plain)
    torch.testing.assert_close(slim.down[1][1].narrow_mean[1], plain["down.1.1.running_mean"])
    slim.train()
    with slimse.at(0.25):
        slim(batches[0])
    assert slim.down[1][1].narrow_batches.tolist() == [0, 1, 0]


def test_parameters_that_no_layer_has_follow_the_width():
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.arange(1.0, 17.0))
            self.up, self.down = torch.nn.Linear(4, 16), torch.nn.Linear(16, 4)

        def forward(self, x):
            return self.down(self.up(x) * self.scale.view(1, -1))

    slim = slimse.slimmify(Scaled(), torch.randn(2, 4))
    x = torch.randn(3, 4)
    for network in (slim, copy.deepcopy(slim)):
        assert network.state_dict()["scale"].shape == (16,)
        with slimse.at(0.25):
            assert network.scale.shape == (4,)
            torch.testing.assert_close(network(x), slimse.extract(network, 0.25)(x))
    assert slimse.extract(slim, 0.25).state_dict()["scale"].tolist() == [1, 2, 3, 4]
