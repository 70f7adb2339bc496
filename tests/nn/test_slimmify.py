"""Existing networks, made slimmable without a change of their code."""

import copy
import threading

import pytest
import torch
from torch import nn

import slimse


class Plain(nn.Module):
    """A little network of every kind of layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 16, 8, 4)
        self.mix = nn.Conv1d(16, 8, 1)
        self.rnn = nn.GRU(8, 12, batch_first=True)
        self.back = nn.Linear(12, 8)
        self.up = nn.ConvTranspose1d(8, 1, 8, 4)

    def forward(self, x):
        """A skip around the recurrent layer."""
        h = self.mix(torch.relu(self.conv(x)))
        return self.up(self.back(self.rnn(h.mT)[0]).mT + h)


CUTS = {"conv": "output", "mix": "input", "rnn": "units", "back": "input"}


def make_slim():
    network = Plain()
    return network, slimse.slimmify(copy.deepcopy(network), CUTS)


def test_a_plain_network_runs_at_every_width():
    network, slim = make_slim()
    assert {k: v.shape for k, v in slim.state_dict().items()} == {k: v.shape for k, v in network.state_dict().items()}
    x = torch.randn(2, 1, 100)
    torch.testing.assert_close(slim(x), network(x))
    outputs = []
    for uf in (0.25, 0.5, 1.0):
        with slimse.at(uf):
            outputs.append(slim(x))
        small = slimse.extract(slim, uf)
        torch.testing.assert_close(small(x), outputs[-1])
        assert not any("slimse" in type(module).__module__ for module in small.modules())
        assert small.conv.out_channels == small.mix.in_channels == 16 * uf
        assert small.rnn.hidden_size == small.back.in_features == 12 * uf
    assert (outputs[0] - outputs[2]).norm() > 0.01 * outputs[2].norm()
    with slimse.at(torch.tensor([0.25, 0.5])):
        mixed = slim(x)
    torch.testing.assert_close(mixed, torch.stack([outputs[0][0], outputs[1][1]]))
    torch.testing.assert_close(slim(x), network(x))


def test_each_width_trains_its_own_rows():
    _, slim = make_slim()
    with slimse.at(0.25):
        slim(torch.randn(2, 1, 100)).square().sum().backward()
    assert slim.conv.weight.grad[:4].any()
    assert not slim.conv.weight.grad[4:].any()
    assert not slim.rnn.weight_hh_l0.grad[3:].any()


@torch.no_grad()
def test_compiled_networks_follow_the_width():
    _, slim = make_slim()
    compiled, x = torch.compile(slim, backend="aot_eager"), torch.randn(1, 1, 60)
    for uf in (0.25, 1.0, 0.5):
        with slimse.at(uf):
            torch.testing.assert_close(compiled(x), slim(x))
    torch.compiler.reset()


def test_threads_and_failures_leave_no_width_behind():
    _, slim = make_slim()
    x = torch.randn(1, 1, 60)
    expected, seen = slim(x), []
    with slimse.at(0.25):
        thread = threading.Thread(target=lambda: seen.append(slim(x)))
        thread.start()
        thread.join()
        assert not torch.equal(slim(x), expected)
    with pytest.raises(ValueError, match=r"uf = 7"), slimse.at(7):
        slim(x)
    assert torch.equal(seen[0], expected)
    assert torch.equal(slim(x), expected)


@pytest.mark.parametrize(
    ("cuts", "message"),
    [
        ({"cnv": "output"}, "no layer is named 'cnv'"),
        ({"": "output"}, "no layer is named ''"),
        ({"conv": "units"}, r"cut of conv = 'units': expected one of \('output', 'input', 'both'\)"),
        ({"rnn": "output"}, r"cut of rnn = 'output': expected one of \('units',\)"),
    ],
)
def test_cuts_that_do_not_fit_are_refused(cuts, message):
    with pytest.raises(ValueError, match=message):
        slimse.slimmify(Plain(), cuts)


def test_layers_of_other_types_are_refused():
    with pytest.raises(ValueError, match="0 is a Conv2d"):
        slimse.slimmify(nn.Sequential(nn.Conv2d(1, 2, 3)), {"0": "output"})
    with pytest.raises(ValueError, match=r"0\.out_proj is a NonDynamicallyQuantizableLinear"):
        slimse.slimmify(nn.Sequential(nn.MultiheadAttention(4, 2)), {"*out_proj": "output"})


@torch.no_grad()
def test_a_transformer_of_torch_in_eval_mode():
    """In eval mode its layers would read weights past the exchanged layers; the widths must not get lost."""
    network = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 32, batch_first=True), 2).eval()
    x = torch.randn(2, 5, 8)
    expected = network(x)
    slim = slimse.slimmify(network, {"layers.*.linear1": "output", "layers.*.linear2": "input"})
    torch.testing.assert_close(slim(x), expected)
    with slimse.at(0.25):
        narrow = slim(x)
    small = slimse.extract(slim, 0.25)
    assert small.layers[1].linear1.out_features == 8
    torch.testing.assert_close(small(x), narrow)
    assert (narrow - expected).norm() > 0.01 * expected.norm()


def test_networks_of_an_installed_package():
    """Those of Lightning's demos: a language model with an LSTM, and one with a transformer."""
    demos = pytest.importorskip("lightning.pytorch.demos")
    from lightning.pytorch.demos.lstm import SimpleLSTM

    tokens = torch.randint(0, 50, (2, 6))
    network = SimpleLSTM(50, 16, 24, 2).eval()
    slim = slimse.slimmify(copy.deepcopy(network), {"rnn": "units", "decoder": "input"})
    state = network.init_hidden(2)
    torch.testing.assert_close(slim(tokens, state)[0], network(tokens, state)[0])
    with slimse.at(0.5):
        narrow = slim(tokens, state)[0]
    half = tuple(part[..., :12].contiguous() for part in state)
    torch.testing.assert_close(slimse.extract(slim, 0.5)(tokens, half)[0], narrow)

    network = demos.Transformer(50, 16, 2, 32, 1, dropout=0.0)
    slim = slimse.slimmify(copy.deepcopy(network), {"*.linear1": "output", "*.linear2": "input"})
    torch.testing.assert_close(slim(tokens, tokens), network(tokens, tokens))
    with slimse.at(0.25):
        narrow = slim(tokens, tokens)
    torch.testing.assert_close(slimse.extract(slim, 0.25)(tokens, tokens), narrow)
