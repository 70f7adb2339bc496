"""Networks of any code, slimmed and registered: streamed as they run at once, saved, enhanced, profiled, exported."""

from dataclasses import dataclass

import pytest
import torch
from slimmed_tcn import SlimTcn, TcnConfig
from torch import nn

import slimse
from slimse import ModelConfig, SlimModel, Streamer
from slimse.networks import SlimmedConfig, SlimmedNetwork, register
from slimse.profiling import profile
from slimse.serving import StreamBatch
from slimse.slimmify import count_macs
from slimse.testing import assert_close, run_frames, run_in_chunks, tiny_model
from slimse.training import sandwich

TCN = tiny_model(ModelConfig(TcnConfig(), level="none"))


class Frequencies(nn.Module):
    """2-D convolutions, a GRU along frequency, an LSTM along time for every frequency."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv1d(1, 16, 16, 16)
        self.conv = nn.Sequential(
            nn.ConstantPad2d((2, 0, 1, 1), 0.0), nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.PReLU()
        )
        self.across = nn.GRU(8, 6, batch_first=True, bidirectional=True)
        self.along = nn.LSTM(12, 8, batch_first=True)
        self.back = nn.Linear(8, 1)
        self.up = nn.ConvTranspose1d(16, 1, 16, 16)

    def forward(self, noisy):
        """Frequencies go into the batch, and frames do."""
        h = self.conv(self.down(noisy).unsqueeze(1))
        batch, channels, bins, frames = h.shape
        rows = self.across(h.permute(0, 3, 2, 1).reshape(-1, bins, channels))[0]
        rows = rows.reshape(batch, frames, bins, -1).transpose(1, 2).reshape(batch * bins, frames, -1)
        return self.up(self.back(self.along(rows)[0])[..., 0].reshape(batch, bins, frames))


class Lag(nn.Module):
    """Windows that overlap: the signal comes back a hop later."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Conv1d(1, 8, 16, 8), nn.ConvTranspose1d(8, 1, 16, 8, padding=8)
        self.inside = nn.Sequential(nn.Conv1d(8, 16, 1), nn.ReLU(), nn.Conv1d(16, 8, 1))

    def forward(self, noisy):
        """Of a signal with silence before it."""
        h = self.inside(self.encoder(nn.functional.pad(noisy, (8, 0))))
        return self.decoder(nn.functional.pad(h, (1, 0)))


def registered(name, make, **values):
    """A model of a network that ``make`` gives."""

    @dataclass(frozen=True)
    class Config(SlimmedConfig):
        pass

    class Network(SlimmedNetwork):
        def build(self):
            return make()

    register(name, Config)(Network)
    try:
        return tiny_model(ModelConfig(Config(**values), level="none"))
    finally:
        slimse.networks.NETWORKS.pop(name)


@pytest.mark.parametrize("name", ["tcn", "frequencies"])
@torch.no_grad()
def test_a_stream_is_the_network_on_the_whole_signal(name):
    model = TCN if name == "tcn" else registered("frequencies", Frequencies, hop=32)
    noisy = torch.randn(2, 32 * 31)
    for uf in model.ufs:
        with slimse.at(uf):
            whole = model.network.inner(noisy.unsqueeze(1))[:, 0]
        assert_close(model(noisy.unsqueeze(1), uf)[:, 0], whole)
        assert_close(run_in_chunks(Streamer(model, uf, streams=2), noisy, [7, 150, 32]), whole)
    each = model(noisy.unsqueeze(1), torch.tensor([0.25, 1.0]))[:, 0]
    assert_close(each[1], whole[1])


@torch.no_grad()
def test_a_width_per_frame_streams_too():
    for samples in (1, 31, 32, 500):
        noisy = torch.randn(2, samples)
        ufs = torch.tensor(TCN.ufs)[torch.randint(4, (2, TCN.geometry.frames(samples)))]
        assert_close(run_frames(TCN, noisy, ufs), TCN(noisy.unsqueeze(1), ufs)[:, 0])


@torch.no_grad()
def test_channels_that_were_cut_are_zero_in_what_is_remembered():
    up, deep = nn.Conv1d(1, 8, 1, bias=False), nn.Conv1d(8, 1, 3, bias=False)
    model = registered("memory", lambda: nn.Sequential(up, nn.ConstantPad1d((2, 0), 0.0), deep), hop=1)
    noisy, ufs = torch.randn(1, 1, 9), torch.tensor([[1.0, 0.25, 1.0, 0.5, 0.5, 1.0, 0.125, 0.125, 1.0]])
    model.network.inner.load_state_dict(nn.Sequential(up, nn.Identity(), deep).state_dict())
    counts, channel = (8 * ufs[0]).long().tolist(), torch.arange(8).unsqueeze(1)
    past = nn.functional.pad(up(noisy) * (channel < torch.tensor(counts)), (2, 0))
    # A frame reads its own width of what earlier ones left, each at its width.
    expected = [deep(past[..., t : t + 3] * (channel < count)) for t, count in enumerate(counts)]
    assert_close(model(noisy, ufs), torch.cat(expected, 2))


@torch.no_grad()
def test_output_that_lags_is_aligned():
    model = registered("lag", Lag, hop=16, delay=8)
    noisy = torch.randn(1, 165)
    late = model.network.inner(nn.functional.pad(noisy, (0, 11)).unsqueeze(1))[0, :, 8:173]
    assert_close(model(noisy.unsqueeze(1))[0], late)
    assert_close(run_in_chunks(Streamer(model, 1.0, streams=1), noisy, [5, 40]), late)
    ufs = torch.tensor(model.ufs)[torch.randint(4, (1, 11))]
    assert_close(run_frames(model, noisy, ufs), model(noisy.unsqueeze(1), ufs)[:, 0])


@torch.no_grad()
def test_it_is_saved_enhanced_served_and_exported(tmp_path):
    slimse.save(TCN, tmp_path / "tcn.safetensors")
    model, noisy = slimse.load(tmp_path / "tcn.safetensors"), torch.randn(1, 1, 320)
    assert torch.equal(model(noisy, 0.25), TCN(noisy, 0.25))
    slimse.save_slimmed(TCN.network.inner, tmp_path / "inner.safetensors")
    inner = slimse.load_slimmed(SlimTcn.build(TCN.network), tmp_path / "inner.safetensors").eval()
    with slimse.at(0.5):
        assert_close(inner(noisy), TCN(noisy, 0.5))
    assert_close(slimse.enhance(noisy[0], 16_000, uf=0.5, model=model), TCN(noisy, 0.5)[0])
    batch = StreamBatch(TCN, 2)
    slots = [batch.join(0.25), batch.join(1.0)]
    out = torch.cat([batch.tick(part)[0] for part in noisy[0].expand(2, -1).split(32, 1)], 1)
    for slot, uf in zip(slots, (0.25, 1.0), strict=True):
        assert_close(out[slot], TCN(noisy, uf)[0, 0])
    small = slimse.extract(TCN.network.inner, 0.25)
    assert_close(torch.export.export(small, (noisy,)).module()(noisy), TCN(noisy, 0.25))
    with pytest.raises(ValueError, match=r"expected slimse\.extract\(model\.network\.inner, uf\)"):
        TCN.extract(0.25)


def test_costs_are_those_of_its_layers():
    costs, inner = profile(TCN), TCN.network.inner
    for width in costs.widths:
        with slimse.at(width.uf):
            short, long = (count_macs(inner, (torch.randn(1, 1, samples),), {}) for samples in (320, 640))
        assert width.macs_per_sample == (long - short) / 320
        assert {"inner.encoder.1", "inner.blocks.0.deep", "inner.gru", "inner.decoder"} <= set(width.blocks)
    assert costs.latency_ms == 1000 * 31 / 16_000


def test_it_trains_through_the_model():
    model = SlimModel(TcnConfig())
    noisy = torch.randn(2, 1, 320)
    sandwich(model, (noisy, noisy), nn.functional.l1_loss).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    gates = torch.nn.functional.one_hot(torch.zeros(2, 10, dtype=torch.int64), 4).float()
    with pytest.raises(ValueError, match="gates over the UFs, which a SlimTcn does not run at"):
        model(noisy, gates)


def block(*inside):
    return lambda: nn.Sequential(nn.Conv1d(1, 8, 1), *inside, nn.Conv1d(8, 1, 1))


class Backwards(nn.Module):
    """A recurrent layer that hears the future."""

    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.GRU(1, 8, batch_first=True, bidirectional=True), nn.Linear(16, 1)

    def forward(self, x):
        """Both directions."""
        return self.out(self.rnn(x.mT)[0]).mT


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (block(nn.GroupNorm(1, 8)), r"1, a GroupNorm, sees more of a signal than a stream has \(a relative error"),
        (block(nn.Conv1d(8, 8, 3, padding=1)), "1, a Conv1d, sees more of a signal than a stream has"),
        (Backwards, "a bidirectional layer runs along time: expected one direction"),
        (block(nn.Conv1d(8, 8, 2)), r"the network gives \(2, 1, 31\) for \(2, 1, 32\): expected the same shape"),
    ],
)
def test_networks_that_cannot_stream_are_refused_by_layer(make, message):
    with pytest.raises(ValueError, match=message):
        registered("refused", make, hop=4)
    with pytest.raises(ValueError, match="hop = 0, delay = 0: expected 1 or more"):
        SlimmedConfig(hop=0)
