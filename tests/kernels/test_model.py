"""The whole network on kernels against the network on references."""

import pytest
import torch
from torch import nn

pytest.importorskip("triton")

from slimse import SlimDemucsConfig, SlimModel, Streamer, at, slimmify

LSTM = SlimDemucsConfig(hidden=4, depth=3, resample=2, rnn="lstm", rnn_layers=2)


@pytest.fixture(params=["small", LSTM], ids=["gru", "lstm"])
def models(request, device):
    """The same weights on kernels and on references."""
    models = [SlimModel(request.param, backend=backend).to(device) for backend in ("triton", "reference")]
    models[1].load_state_dict(models[0].state_dict())
    return models


def widths(kind, model, device):
    """A number, one per item, or one per frame."""
    if kind == "uniform":
        return 0.25
    shape = (2,) if kind == "items" else (2, model.geometry.frames(150))
    return torch.tensor(model.ufs, device=device)[torch.randint(4, shape, device=device)]


@pytest.mark.parametrize("kind", ["uniform", "items", "frames"])
def test_forward_and_gradients(models, kind, device, distance):
    noisy = torch.randn(2, 1, 150, device=device)
    uf = widths(kind, models[0], device)
    results = []
    for model in models:
        out = model(noisy, uf)
        out.square().sum().backward()
        results.append([out.detach(), *(parameter.grad for parameter in model.parameters())])
    for ours, theirs in zip(*results, strict=True):
        assert distance(ours, theirs) < 1e-4


@torch.no_grad()
def test_streaming(models, device, distance):
    noisy = torch.randn(300, device=device)
    streamer = Streamer(models[0], 0.5)
    parts = [streamer.feed(chunk, uf) for chunk, uf in zip(noisy.split(100), (0.125, 1.0, 0.5), strict=True)]
    enhanced = torch.cat([*parts, streamer.flush()])
    reference = Streamer(models[1], 0.5)
    parts = [reference.feed(chunk, uf) for chunk, uf in zip(noisy.split(100), (0.125, 1.0, 0.5), strict=True)]
    assert distance(enhanced, torch.cat([*parts, reference.flush()])) < 1e-5


@torch.no_grad()
def test_compiled_in_one_graph(models, device, distance):
    noisy = torch.randn(2, 1, 150, device=device)
    uf = widths("frames", models[0], device)
    compiled = torch.compile(models[0], fullgraph=True, backend="aot_eager")
    assert distance(compiled(noisy, uf), models[1](noisy, uf)) < 1e-5
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"backend": "cuda"}, "backend = 'cuda': expected one of"), ({"precision": "fp32"}, "precision = 'fp32'")],
)
def test_unknown_choices_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SlimModel("small", **options)


class Layers(nn.Module):
    """Every layer that stands in for one of `torch.nn`."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 12, 5, 3, padding=2)
        self.mix = nn.Conv1d(12, 6, 3, dilation=2)
        self.gru = nn.GRU(6, 8, bidirectional=True, batch_first=True)
        self.lstm = nn.LSTM(16, 8, 2, batch_first=True)
        self.back = nn.Linear(8, 6)
        self.up = nn.ConvTranspose1d(6, 1, 5, 3, padding=1, output_padding=1)

    def forward(self, x):
        """Convolutions, recurrences, and back to the rate of the input."""
        h = self.mix(torch.relu(self.conv(x)))
        return self.up(self.back(self.lstm(self.gru(h.mT)[0])[0]).mT)


def test_slimmified_networks_on_kernels(device, distance):
    x = torch.randn(2, 1, 40)
    networks = [slimmify(Layers(), x, backend="reference").to(device) for _ in range(2)]
    for layer in networks[0].modules():
        layer.backend = "triton"
    networks[1].load_state_dict(networks[0].state_dict())
    x = x.to(device)
    for uf in (0.25, 1.0, torch.tensor([0.25, 0.5], device=device)):
        results = []
        for network in networks:
            network.zero_grad()
            with at(uf):
                out = network(x)
            out.square().sum().backward()
            results.append([out.detach(), *(parameter.grad for parameter in network.parameters())])
        for ours, theirs in zip(*results, strict=True):
            assert distance(ours, theirs) < 1e-4
