"""Voice-agent frameworks: their own frames through their own packages."""

import asyncio

import numpy as np
import pytest
import soundfile
import soxr

import slimse
from slimse.demo import bundled_clip
from slimse.integrations import shared_model
from slimse.live import LiveStreamer

RATES = [8_000, 16_000, 24_000, 48_000]


def sound(rate: int, channels: int = 1) -> np.ndarray:
    """``[n, channels]`` of half a second, interleaved as the frameworks have it."""
    samples, own = soundfile.read(bundled_clip(), dtype="float32", frames=8_000)
    mono = np.rint(20_000 * soxr.resample(samples, own, rate)).clip(-32_768, 32_767).astype(np.int16)
    return np.repeat(mono[: rate // 2, None], channels, 1)


def expected(samples: np.ndarray, rate: int) -> np.ndarray:
    streamer = LiveStreamer(shared_model(), 0.125, sample_rate=rate, channels=samples.shape[1], dtype="int16")
    return streamer.feed(np.ascontiguousarray(samples.T)).T


def furthest(actual: np.ndarray, wanted: np.ndarray) -> int:
    """Largest difference: frames of other lengths may round the last bit otherwise."""
    assert actual.shape == wanted.shape
    assert np.abs(wanted.astype(int)).max() > 300
    return int(np.abs(actual.astype(int) - wanted).max())


@pytest.mark.parametrize(("rate", "channels"), [*((rate, 1) for rate in RATES), (48_000, 2)])
def test_livekit(rate: int, channels: int) -> None:
    rtc = pytest.importorskip("livekit.rtc", reason="needs the extra slimse[livekit]")
    from slimse.integrations.livekit import SlimSEFrameProcessor

    processor, samples, step = SlimSEFrameProcessor(0.125), sound(rate, channels), rate // 50
    assert isinstance(processor, rtc.FrameProcessor)
    outputs = []
    for start in range(0, len(samples), step):
        frame = rtc.AudioFrame(samples[start : start + step].tobytes(), rate, channels, step, userdata={"at": start})
        out = processor._process(frame)
        assert (out.sample_rate, out.num_channels, out.samples_per_channel) == (rate, channels, step)
        assert out.userdata == {"at": start}
        outputs.append(np.frombuffer(out.data, np.int16).reshape(-1, channels))
    assert furthest(np.concatenate(outputs), expected(samples, rate)) <= 1
    assert processor.delay_ms < 90
    assert 0 <= processor.frame.speech <= 1


def test_livekit_switches_and_closes() -> None:
    rtc = pytest.importorskip("livekit.rtc", reason="needs the extra slimse[livekit]")
    from slimse.integrations.livekit import SlimSEFrameProcessor

    first, second = SlimSEFrameProcessor(0.125), SlimSEFrameProcessor(budget=0.25, strength=0.5)
    assert first._model is second._model
    samples = sound(16_000)

    def process() -> bytes:
        return bytes(first._process(rtc.AudioFrame(samples.tobytes(), 16_000, 1, len(samples))).data)

    whole = process()
    first.enabled = False
    assert not first.enabled
    first.enabled = True
    # As a new stream: nothing of the old one is left.
    assert process() == whole
    first.strength = 0
    assert first.strength == 0
    with pytest.raises(ValueError, match="strength = 2"):
        second.strength = 2
    first._close()
    with pytest.raises(ValueError, match="is closed"):
        process()
    with pytest.raises(ValueError, match=r"0\.3"):
        SlimSEFrameProcessor(0.3)


@pytest.mark.parametrize("rate", RATES)
def test_pipecat(rate: int) -> None:
    pytest.importorskip("pipecat", reason="needs the extra slimse[pipecat]")
    from pipecat.audio.filters.base_audio_filter import BaseAudioFilter
    from pipecat.frames.frames import FilterEnableFrame, FilterUpdateSettingsFrame

    from slimse.integrations.pipecat import SlimSEFilter

    samples, step = sound(rate), rate // 50

    async def session() -> None:
        session = SlimSEFilter(0.125)
        assert isinstance(session, BaseAudioFilter)
        assert await session.filter(b"ab") == b"ab"
        await session.start(rate)
        parts = []
        for start in range(0, len(samples), step):
            parts.append(await session.filter(samples[start : start + step].tobytes()))
            assert len(parts[-1]) == 2 * step
        assert furthest(np.frombuffer(b"".join(parts), np.int16), expected(samples, rate)[:, 0]) <= 1
        assert 0 < session.delay_ms < 90
        await session.process_frame(FilterEnableFrame(enable=False))
        await session.filter(samples.tobytes())
        again = np.frombuffer(await session.filter(samples.tobytes()), np.int16)
        delay = round(session.delay_ms * rate / 1000)
        # Off: the input, as late as before.
        assert np.array_equal(again[delay:], samples[: len(again) - delay, 0])
        await session.process_frame(FilterEnableFrame(enable=True))
        await session.process_frame(FilterUpdateSettingsFrame(settings={"strength": 0.5, "budget": 0.25}))
        assert len(await session.filter(samples.tobytes())) == 2 * len(samples)
        with pytest.raises(ValueError, match="setting 'gain'"):
            await session.process_frame(FilterUpdateSettingsFrame(settings={"gain": 1}))
        with pytest.raises(ValueError, match="3 bytes"):
            await session.filter(b"abc")
        await session.stop()
        await session.start(16_000)
        await session.stop()

    asyncio.run(session())


def test_one_model_for_all_sessions() -> None:
    assert shared_model() is shared_model()
    assert isinstance(shared_model(), slimse.SlimModel)
