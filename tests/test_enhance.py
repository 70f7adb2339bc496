"""Enhancing signals of any rate, length and number of channels in memory."""

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
import soxr
import torch

from slimse import ModelConfig, SlimDemucsConfig, SlimModel
from slimse.audio.enhance import BLOCK_SECONDS, Enhancer, block_length, dry_share, enhance
from slimse.audio.network import deviation, open_network

RATES = [8_000, 16_000, 22_050, 44_100, 48_000]


class Stub:
    """A network that multiplies by ``gain`` and gives everything out ``delay`` samples late."""

    def __init__(self, gain: float = 1.0, delay: int = 700) -> None:
        self.gain, self.delay = np.float32(gain), delay
        self.shapes: list[tuple[int, ...]] = []
        self._held: np.ndarray | None = None

    def feed(self, chunk: np.ndarray) -> np.ndarray:
        """Hold the last ``delay`` samples back."""
        self.shapes.append(chunk.shape)
        held = chunk if self._held is None else np.concatenate([self._held, chunk], axis=1)
        ready = max(0, held.shape[1] - self.delay)
        self._held = held[:, ready:]
        return self.gain * held[:, :ready]

    def flush(self) -> np.ndarray:
        """Give them out."""
        return self.gain * self._held


def noise(channels: int, samples: int, level: float = 0.1, seed: int = 0) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal((channels, samples))).astype(np.float32)


def run(enhancer: Enhancer, x: np.ndarray, chunk: int = 4000) -> np.ndarray:
    parts = [enhancer.feed(x[:, start : start + chunk]) for start in range(0, x.shape[1], chunk)]
    return np.concatenate([*parts, enhancer.flush()], axis=1)


def decibels(error: np.ndarray, reference: np.ndarray) -> float:
    return float(20 * np.log10(np.abs(error).max() / np.abs(reference).max() + 1e-20))


def level(x: np.ndarray) -> float:
    return float(10 * np.log10(np.square(x.astype(np.float64)).mean()))


@pytest.fixture
def model() -> SlimModel:
    return SlimModel("small").eval()


# The stream --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("rate", [*RATES, 11_025, 96_000])
def test_without_a_change_by_the_network_the_output_is_the_input(rate: int, channels: int) -> None:
    x = noise(channels, rate + 13)
    out = run(Enhancer(Stub(), rate, channels), x)
    assert out.shape == x.shape
    assert decibels(out - x, x) < -100


@pytest.mark.parametrize("samples", [1, 2, 3, 50, 1000])
@pytest.mark.parametrize("rate", [1_000, 8_000, 16_000, 44_100, 192_000])
def test_short_signals_keep_their_length(rate: int, samples: int) -> None:
    x = noise(2, samples)
    out = run(Enhancer(Stub(), rate, 2), x, chunk=7)
    assert out.shape == x.shape
    assert decibels(out - x, x) < -80


@pytest.mark.parametrize("rate", [16_000, 22_050, 44_100, 48_000])
def test_what_the_network_lowers_is_lowered_over_the_whole_band(rate: int) -> None:
    x = noise(2, rate)
    out = run(Enhancer(Stub(gain=0.1), rate, 2), x)
    assert decibels(out - 0.1 * x, x) < -55


def test_the_high_band_is_kept_where_the_network_keeps_the_low_one() -> None:
    """At 48 kHz, a plain way down and up again would lose everything above 8 kHz."""
    time = np.arange(48_000) / 48_000
    x = (0.1 * np.sin(2 * np.pi * 12_000 * time) + 0.1 * np.sin(2 * np.pi * 5000 * time))[None].astype(np.float32)
    for gain in (1.0, 0.25):
        spectrum = np.abs(np.fft.rfft(run(Enhancer(Stub(gain), 48_000), x)[0, 12_000:36_000])) / 12_000
        assert spectrum[6000] == pytest.approx(0.1 * gain, rel=0.02)


@pytest.mark.parametrize("rate", [8_000, 11_025])
def test_the_network_hears_nothing_above_a_low_rate(rate: int, model: SlimModel) -> None:
    out = enhance(noise(1, rate)[0], rate, model=model)
    assert out.shape == (rate,)
    assert np.isfinite(out).all() and out.any()


def test_the_result_does_not_depend_on_the_pieces(model: SlimModel) -> None:
    x = noise(2, 30_001)
    outs = [run(Enhancer(open_network(model, 2, 0.5), 44_100, 2), x, chunk) for chunk in (30_001, 4410, 333)]
    for one, other in pairwise(outs):
        assert decibels(one - other, one) < -90


def test_memory_does_not_grow_with_the_length() -> None:
    def peak(seconds: int) -> int:
        enhancer = Enhancer(Stub(), 44_100, 2)
        block = noise(2, 8_820)
        tracemalloc.start()
        for _ in range(5 * seconds):
            enhancer.feed(block)
        enhancer.flush()
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert peak(20) < 1.1 * peak(5)


def test_blocks_share_their_sound_between_the_channels() -> None:
    assert block_length(16_000, 1) == 16_000 * BLOCK_SECONDS
    assert block_length(48_000, 8) == 48_000 * BLOCK_SECONDS / 8
    assert block_length(16_000, 100_000) == 320


# Channels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_a_panned_source_keeps_its_level_difference(rate: int, model: SlimModel) -> None:
    source = noise(1, rate * 2)[0]
    stereo = np.stack([source, 0.3 * source])
    out = enhance(stereo, rate, 0.5, model=model)
    assert level(out[1]) - level(out[0]) == pytest.approx(20 * np.log10(0.3), abs=0.1)


def test_a_silent_channel_stays_silent(model: SlimModel) -> None:
    out = enhance(np.concatenate([noise(1, 16_000), np.zeros((1, 16_000), np.float32)]), 16_000, model=model)
    assert out[0].any() and not out[1].any()


def test_all_channels_are_one_call_of_the_network() -> None:
    stub = Stub()
    run(Enhancer(stub, 16_000, 5), noise(5, 9000))
    assert {shape[0] for shape in stub.shapes} == {5}


def test_equal_channels_stay_equal(model: SlimModel) -> None:
    out = enhance(np.repeat(noise(1, 8000), 2, axis=0), 16_000, model=model)
    assert np.array_equal(out[0], out[1])


# Strength ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_dry_mixes_the_aligned_input_back_in(rate: int) -> None:
    x = noise(2, rate)
    assert decibels(run(Enhancer(Stub(gain=0), rate, 2, dry=0.25), x) - 0.25 * x, x) < -55
    assert decibels(run(Enhancer(Stub(gain=0), rate, 2, dry=1.0), x) - x, x) < -120


def test_noise_is_lowered_by_no_more_than_the_limit(model: SlimModel) -> None:
    share = dry_share(attenuation_limit=12)
    x = noise(1, 16_000)
    assert level(run(Enhancer(Stub(gain=0), 16_000, dry=share), x)) - level(x) == pytest.approx(-12, abs=0.01)
    by_limit = enhance(x[0], 16_000, model=model, attenuation_limit=12)
    assert np.array_equal(by_limit, enhance(x[0], 16_000, model=model, dry=share))


@pytest.mark.parametrize(
    ("dry", "limit", "message"),
    [(1.5, None, "dry = 1.5"), (-0.1, None, "dry"), (float("nan"), None, "dry"), (None, -3, "attenuation_limit = -3")],
)
def test_strengths_out_of_range(dry: float | None, limit: float | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dry_share(dry, limit)


def test_dry_and_limit_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="one of them"):
        dry_share(0.1, 12)
    assert dry_share() == 0


# In memory ---------------------------------------------------------------------------------------------------------


def test_one_channel_at_the_models_rate_is_the_models_output(model: SlimModel) -> None:
    x = torch.randn(70_001) * 0.1
    expected = model(x.reshape(1, 1, -1), 0.25).detach().flatten()
    assert decibels((enhance(x, 16_000, 0.25, model=model) - expected).numpy(), expected.numpy()) < -90


def test_at_another_rate_it_is_the_models_output_resampled_and_aligned(model: SlimModel) -> None:
    low = soxr.resample(noise(1, 8000)[0], 8_000, 16_000)
    x = soxr.resample(low, 16_000, 48_000)
    expected = model(torch.from_numpy(low).reshape(1, 1, -1)).detach().numpy().flatten()
    out = enhance(x, 48_000, model=model)
    # Up to 4 kHz, that is without the resampler's slope below 8 kHz, where the input's share begins.
    low_out, low_expected = soxr.resample(out, 48_000, 8_000), soxr.resample(expected, 16_000, 8_000)
    inner = slice(500, -500)
    assert decibels((low_out - low_expected)[inner], low_expected[inner]) < -60


@pytest.mark.parametrize("causal", [True, False])
def test_models_that_normalise_get_the_level_of_the_whole_signal(causal: bool) -> None:
    config = ModelConfig(SlimDemucsConfig(hidden=8, depth=3, resample=2, rnn="lstm", causal=causal), level="signal")
    model = SlimModel(config).eval()
    x = noise(1, 70_001)
    x[:, :30_000] *= 0.01
    expected = model(torch.from_numpy(x)[None]).detach().numpy()[0]
    assert decibels(enhance(x, 16_000, model=model) - expected, expected) < -80


def test_deviation_is_that_of_each_channel() -> None:
    x = noise(2, 10_000) * np.float32([[1], [3]]) + np.float32(0.2)
    std = deviation([x[:, :3000], x[:, 3000:]], 16_000, 2, 16_000)
    assert torch.allclose(std, torch.from_numpy(x).std(1, keepdim=True), rtol=1e-5)
    assert not deviation([x[:, :1]], 16_000, 2, 16_000).any()


@pytest.mark.parametrize("shape", [(3000,), (1, 3000), (2, 3000), (5, 3000)])
def test_kind_shape_and_dtype_are_the_inputs(shape: tuple[int, ...], model: SlimModel) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        x = 0.1 * torch.randn(shape).to(dtype)
        out = enhance(x, 16_000, model=model)
        assert (out.shape, out.dtype, out.requires_grad) == (x.shape, dtype, False)
    for kind in (np.float32, np.float64):
        array = (0.1 * np.random.default_rng(0).standard_normal(shape)).astype(kind)
        result = enhance(array, 16_000, model=model)
        assert isinstance(result, np.ndarray) and (result.shape, result.dtype) == (array.shape, array.dtype)


def test_a_slice_of_an_array_is_not_changed_and_gives_the_same(model: SlimModel) -> None:
    wide = noise(3000, 4).astype(np.float64)
    before = wide.copy()
    assert np.array_equal(enhance(wide[:, 1], 16_000, model=model), enhance(wide[:, 1].copy(), 16_000, model=model))
    assert np.array_equal(wide, before)


@pytest.mark.parametrize(
    ("audio", "rate", "message"),
    [
        (np.zeros(100, np.int16), 16_000, "int16: expected floating point"),
        (np.zeros(0, np.float32), 16_000, "not empty"),
        (np.zeros((2, 0), np.float32), 16_000, "not empty"),
        (np.zeros((1, 2, 100), np.float32), 16_000, r"\(1, 2, 100\)"),
        (np.zeros((4000, 2), np.float32), 16_000, "look transposed"),
        (np.float32([0, 0, 0, np.inf]), 16_000, r"inf at 0\.0002 s"),
        (np.zeros(100, np.float32), 0, "sample_rate = 0"),
        (np.full(1000, 3e38, np.float32), 16_000, r"expected finite samples of at most 1e\+06"),
    ],
)
def test_bad_arrays(audio: np.ndarray, rate: int, message: str, model: SlimModel) -> None:
    with pytest.raises(ValueError, match=message):
        enhance(audio, rate, model=model)


def test_a_nan_is_reported_with_its_time_and_channel(model: SlimModel) -> None:
    x = noise(2, 10 * 44_100)
    x[1, 9 * 44_100 + 11_025] = np.nan
    with pytest.raises(ValueError, match=r"nan at 9\.2500 s \(channel 1"):
        enhance(x, 44_100, model=model)


@pytest.mark.parametrize("value", [0.0, 0.5])
@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_silence_and_dc_give_a_valid_output(value: float, rate: int, model: SlimModel) -> None:
    out = enhance(np.full((2, 5000), value, np.float32), rate, model=model)
    assert out.shape == (2, 5000) and np.isfinite(out).all()


def test_a_bad_width_names_the_set(model: SlimModel) -> None:
    with pytest.raises(ValueError, match=r"0\.3.*0\.125, 0\.25, 0\.5, 1\.0"):
        enhance(noise(1, 100), 16_000, 0.3, model=model)
