"""Existing networks, made slimmable without a change of their code."""

import copy
import json
import pickle
import threading

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import slimse
from slimse.cli import app
from slimse.slimmify import count_macs

UFS = (0.125, 0.25, 0.5, 1.0)


class Plain(nn.Module):
    """A little network with a recurrent layer in both directions and a skip around it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 16, 8, 4)
        self.mix = nn.Conv1d(16, 8, 1)
        self.rnn = nn.GRU(8, 12, batch_first=True, bidirectional=True)
        self.back = nn.Linear(24, 8)
        self.up = nn.ConvTranspose1d(8, 1, 8, 4)

    def forward(self, x):
        """Down, recurrence, up."""
        h = self.mix(torch.relu(self.conv(x)))
        return self.up(self.back(self.rnn(h.mT)[0]).mT + h)


def make_slim(**options):
    network = Plain()
    return network, slimse.slimmify(copy.deepcopy(network), torch.randn(1, 1, 60), **options)


def cut_layers(network):
    return {group.layers for group in network.slimming.groups if not group.full}


def reason_of(network, name):
    return next(group.full for group in network.slimming.groups if name in group.layers)


def test_the_inside_of_blocks_is_cut_and_interfaces_stay_full():
    network, slim = make_slim()
    assert cut_layers(slim) == {("conv",), ("rnn",)}
    assert "interface between blocks" in reason_of(slim, "mix")
    assert "output of the network" in reason_of(slim, "up")
    assert {k: v.shape for k, v in slim.state_dict().items()} == {k: v.shape for k, v in network.state_dict().items()}
    assert "2 groups of channels are cut" in str(slim.slimming)


def test_a_network_runs_at_every_width():
    network, slim = make_slim()
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
        assert 2 * small.rnn.hidden_size == small.back.in_features == 24 * uf
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
    gates = slim.rnn.weight_hh_l0.grad.unflatten(0, (3, 12))
    assert gates[:, :3, :3].any()
    assert not gates[:, 3:].any()


def test_macs_and_parameters_are_those_of_the_small_network():
    _, slim = make_slim()
    for width in slim.slimming.widths:
        small = slimse.extract(slim, width.uf)
        assert width.parameters == sum(parameter.numel() for parameter in small.parameters())
        assert width.macs == count_macs(small, (torch.randn(1, 1, 60),), {})


@torch.no_grad()
def test_compiled_and_exported_networks_follow_the_width():
    _, slim = make_slim()
    compiled, x = torch.compile(slim, backend="aot_eager"), torch.randn(1, 1, 60)
    for uf in (0.25, 1.0, 0.5):
        with slimse.at(uf):
            torch.testing.assert_close(compiled(x), slim(x))
    torch.compiler.reset()
    with slimse.at(0.25):
        exported = torch.export.export(slim, (x,), strict=False).module()
        torch.testing.assert_close(exported(x), slim(x))


def test_copies_pickles_and_number_formats_keep_their_widths():
    _, slim = make_slim()
    x = torch.randn(1, 1, 60)
    with slimse.at(0.25), torch.no_grad():
        expected = slim(x)
        for other in (copy.deepcopy(slim), pickle.loads(pickle.dumps(slim))):
            assert torch.equal(other(x), expected)
        torch.testing.assert_close(copy.deepcopy(slim).double()(x.double()).float(), expected)
        halved = copy.deepcopy(slim).bfloat16()(x.bfloat16())
        torch.testing.assert_close(halved.float(), expected, atol=0.05, rtol=0.05)


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


def test_cuts_choose_groups_by_any_of_their_layers():
    _, slim = make_slim(cuts={"back": "input"})
    assert cut_layers(slim) == {("rnn",)}
    assert reason_of(slim, "conv") == "not chosen"
    _, slim = make_slim(cuts={"m?x": "both"})
    assert {name for names in cut_layers(slim) for name in names} == {"conv", "mix", "back"}


@pytest.mark.parametrize(
    ("cuts", "message"),
    [
        ({"cnv": "output"}, r"no layer is named 'cnv': expected one of \['conv'"),
        ({"conv": "outputs"}, "cut of conv = 'outputs': expected one of"),
        ({"rnn": "heads"}, "cut of rnn = 'heads': its heads has no channels"),
        ({"up": "output"}, "cut of up = 'output': .*an output of the network"),
        ({"conv": "input"}, "cut of conv = 'input': its input has no channels"),
    ],
)
def test_cuts_that_do_not_fit_are_refused(cuts, message):
    with pytest.raises(ValueError, match=message):
        make_slim(cuts=cuts)


def test_what_cannot_be_slimmed_is_refused():
    with pytest.raises(ValueError, match="nothing can be cut: 0: they are an output of the network"):
        slimse.slimmify(nn.Sequential(nn.Linear(2, 3)), torch.randn(1, 2))
    with pytest.raises(ValueError, match="expected a tensor, a tuple"):
        slimse.slimmify(Plain(), {"conv": "output"})
    with pytest.raises(ValueError, match="not slimmed yet"):
        slimse.slimmify(make_slim()[1], torch.randn(1, 1, 60))


class Wired(nn.Module):
    """Two layers with some function of the channels between."""

    def __init__(self, between, size=16, read=16):
        super().__init__()
        self.first, self.last, self.between = nn.Conv1d(4, size, 1), nn.Conv1d(read, 4, 1), between

    def forward(self, x):
        """One after the other."""
        return self.last(self.between(self.first(x)))


FOLLOWED = {
    "reshapes": lambda x: x.permute(0, 2, 1).reshape(x.shape[0] * x.shape[2], -1).reshape(len(x), -1, x.shape[1]).mT,
    "a pool along time": lambda x: nn.functional.max_pool1d(x, 3, 1, 1),
    "a sum with itself": lambda x: x + torch.tanh(x) * x.mean(2, keepdim=True),
    "global norm": lambda x: (x - x.mean((1, 2), keepdim=True)) / x.std((1, 2), keepdim=True),
    "attention over time": lambda x: x @ torch.softmax(x.mT @ x, -1),
}
SPLIT = {
    "gates": (32, 16, lambda x: nn.functional.glu(x, 1)),
    "three parts": (48, 16, lambda x: (lambda a, b, c: a * torch.sigmoid(b) + c)(*x.chunk(3, 1))),
    "concatenation": (16, 32, lambda x: torch.cat([x, torch.relu(-x)], 1)),
    "frequencies folded in": (16, 32, lambda x: x.unflatten(2, (2, -1)).flatten(1, 2)),
}
STAYS = {
    "reversed": (lambda x: x.flip(1), "reads a part of them, or in another order"),
    "a fixed number of channels": (lambda x: x.reshape(-1, 16, x.shape[2]) * 1.0, "own code does not run"),
    "a fixed mask": (lambda x: x * torch.arange(16.0).view(1, 16, 1), "combines them with what is not cut"),
    "a fixed matrix": (lambda x: torch.eye(16) @ x, "multiplies them by a matrix that is not cut"),
    "sorted": (lambda x: x.sort(1).values, " has no rule"),
}


def check(network, x):
    """All widths against the extracted network; slimmify has done so on another example."""
    for uf in UFS:
        with slimse.at(uf):
            torch.testing.assert_close(network(x), slimse.extract(network, uf)(x))


@pytest.mark.parametrize("name", FOLLOWED)
def test_channels_are_followed_through(name):
    network = slimse.slimmify(Wired(FOLLOWED[name]), torch.randn(2, 4, 6))
    assert cut_layers(network) == {("first",)}
    check(network, torch.randn(3, 4, 8))


@pytest.mark.parametrize("name", SPLIT)
def test_parts_of_an_output_are_cut_alike(name):
    size, read, between = SPLIT[name]
    network = slimse.slimmify(Wired(between, size, read), torch.randn(2, 4, 2 if "folded" in name else 6))
    assert cut_layers(network) == {("first",)}
    check(network, torch.randn(3, 4, 2 if "folded" in name else 8))


@pytest.mark.parametrize("name", STAYS)
def test_what_cannot_be_followed_stays_full_and_says_why(name):
    between, reason = STAYS[name]
    network = Wired(between)
    with pytest.raises(ValueError, match=reason):
        slimse.slimmify(copy.deepcopy(network), torch.randn(2, 4, 6))
    wrapped = nn.Sequential(network, nn.Conv1d(4, 32, 1), nn.ReLU(), nn.Conv1d(32, 4, 1))
    slim = slimse.slimmify(wrapped, torch.randn(2, 4, 6))
    assert reason in reason_of(slim, "0.first")


@pytest.mark.parametrize("name", ["global norm", "softmax over channels", "items folded together"])
def test_a_tensor_of_ufs_is_refused_where_it_has_no_meaning(name):
    betweens = {
        **FOLLOWED,
        "softmax over channels": lambda x: torch.softmax(x, 1),
        "items folded together": lambda x: (x - x.mean(0)) * 1.0,
    }
    network = slimse.slimmify(Wired(betweens[name]), torch.randn(2, 4, 6))
    with (
        pytest.raises(ValueError, match=r"expected a number, as .* works on several channels at once"),
        slimse.at(torch.tensor([0.25, 1.0])),
    ):
        network(torch.randn(2, 4, 6))


def test_layers_with_projections_and_packed_sequences_stay_full_by_name():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.rnn, self.out = nn.Linear(4, 6), nn.GRU(6, 8, batch_first=True), nn.Linear(8, 16)
            self.lstm, self.last = nn.LSTM(16, 8, proj_size=4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            packed = nn.utils.rnn.pack_padded_sequence(self.inner(x), torch.full((len(x),), x.shape[1]), True)
            h = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], True)[0]
            return self.last(self.lstm(self.out(h))[0])

    with pytest.raises(ValueError, match=r"nothing can be cut: .*lstm has projections"):
        slimse.slimmify(Packed(), torch.randn(2, 5, 4))


def test_the_command_profiles_any_slimmed_network(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import torch, slimse\n"
        "def make():\n"
        "    layers = torch.nn.Linear(4, 16), torch.nn.Linear(16, 4)\n"
        "    return slimse.slimmify(torch.nn.Sequential(*layers), torch.randn(1, 4))\n"
        "def plain():\n"
        "    return torch.nn.Linear(1, 1)\n"
    )
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["profile", "mine:make", "--json"])
    assert [width["macs"] for width in json.loads(result.stdout)["widths"]] == [16, 32, 64, 128]
    result = CliRunner().invoke(app, ["profile", "mine:plain"])
    assert "makes a Linear, expected one that slimmify returned" in result.stderr
    assert result.exit_code == 2
