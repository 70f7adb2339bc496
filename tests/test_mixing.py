"""What mixtures are made of: voices, colours, levels, silence; and the speakers and noises that are held out."""

import csv
import shutil
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import torch

pytest.importorskip("lightning", reason="training needs the extra slimse[train]")

from slimse.training.bank import Bank, load_devices, load_rooms
from slimse.training.config import TrainConfig
from slimse.training.data import TrainingData
from slimse.training.held_out import held_out, held_out_noises, held_out_speakers, mixture, render
from slimse.training.mixing import Mixer, Recipe
from slimse.training.rendering import NOISE, Renderer, collate, fast_size, rms, speech_level, white

PLAIN = dict.fromkeys(
    ("clean", "noise_only", "babble", "coloured", "second_noise", "speed", "noise_speed", "backwards", "room"), 0.0
) | dict.fromkeys(("device", "offset", "silence", "jump", "equalise", "low_pass"), 0.0)
"""Chances of a recipe that adds a noise and does nothing else."""


def write(path, audio, rate=16_000, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.asarray(audio, dtype=np.float32), rate, **options)


def mixer(speech, noise, *, rooms=(), devices=(), length=8000, **chances):
    banks = (Bank.of([clip], [np.array([0])], np.ones(1)) for clip in (speech, noise))
    return Mixer(*banks, rooms, length, 200, seed=1, recipe=Recipe(**{**PLAIN, **chances}), devices=devices)


@pytest.fixture
def tones():
    """A tone for speech, hiss for noise, as 16-bit integers."""
    rng, time = np.random.default_rng(0), np.arange(20_000) / 16_000
    return [(8000 * x).astype(np.int16) for x in (np.sin(2 * np.pi * 300 * time), 0.3 * rng.standard_normal(20_000))]


def test_voices_are_drawn_alike_however_much_they_say_and_sets_have_weights(tmp_path):
    for name, seconds in (("many/a/1", 0.1), ("many/a/2", 0.1), ("many/b/1", 2), ("loose/1", 0.1), ("loose/2", 0.1)):
        write(tmp_path / f"{name}.flac", 0.1 * np.ones(int(16_000 * seconds)))
    for number in range(3):
        write(tmp_path / "mine" / "unlabelled" / f"{number}.flac", 0.1 * np.ones(1600))
    bank = Bank.load(tmp_path, 16_000, voices=True, set_weights={"many": 3.0})
    # Five files by themselves, and two voices of weight three.
    assert sorted(bank.weights) == pytest.approx([1 / 11] * 5 + [3 / 11] * 2)
    assert sorted(map(len, bank.groups)) == [1, 1, 1, 1, 1, 1, 2]
    left = Bank.load(tmp_path, 16_000, voices=True, exclude={"b", "unlabelled"})
    assert len(left.edges) == 5 and len(left.groups) == 3
    with pytest.raises(ValueError, match="set_weights"):
        Bank.load(tmp_path, 16_000, voices=True, set_weights={"many": -1.0})
    with pytest.raises(ValueError, match="more than 0"):
        Bank.load(tmp_path, 16_000, voices=True, set_weights=dict.fromkeys(("many", "loose", "mine"), 0.0))


def test_draws_follow_the_weights():
    ones, twos = (np.full(100, value, np.int16) for value in (1, 2))
    bank = Bank.of([ones, twos], [np.array([0]), np.array([1])], np.array([0.2, 0.8]))
    rng = np.random.default_rng(0)
    drawn = [int(bank.samples[bank.draw(rng, 50)[0].source]) for _ in range(400)]
    assert np.mean(np.array(drawn) == 2) == pytest.approx(0.8, abs=0.05)
    # What is short is followed by others after a pause.
    pieces = bank.draw(rng, 20_000)
    assert pieces[0].start == 0 and sum(piece.length for piece in pieces) == 100 * len(pieces)
    assert all(1700 <= b.start - a.start < 8100 for a, b in pairwise(pieces))


def test_what_peaks_above_full_scale_is_brought_down_whole(tmp_path):
    loud = 1.5 * np.sin(2 * np.pi * np.arange(1600) / 160)
    write(tmp_path / "a" / "b" / "loud.wav", loud, subtype="FLOAT")
    clip = Bank.load(tmp_path, 16_000).samples.numpy()
    # Clipping would flatten the tops.
    assert np.abs(clip / 32767 - loud / 1.5).max() < 1e-3


def test_colours_are_no_rooms(tmp_path, tones):
    decay = np.exp(-np.arange(800) / 100)
    write(tmp_path / "rir" / "hall" / "h.wav", 0.5 * decay)
    write(tmp_path / "rir" / "device" / "make" / "m.wav", np.concatenate([[0.1, -0.2], 0.5 * decay]))
    (room,), (device,) = load_rooms(tmp_path / "rir", 16_000), load_devices(tmp_path / "rir", 16_000)
    assert np.abs(room).argmax() == 0 and np.abs(device).argmax() == 2
    assert np.linalg.norm(device) == pytest.approx(1)
    assert load_rooms(tmp_path / "none", 16_000) == load_devices(tmp_path / "none", 16_000) == []
    plain, coloured = (mixer(*tones, devices=[np.float32([0, 1, 0.5])], device=chance) for chance in (0.0, 1.0))
    both = 0
    for number in range(10):
        noisy, clean = (part[0].numpy() for part in coloured[number])
        assert not np.allclose(clean, plain[number][1][0].numpy(), rtol=0.01)
        noise = noisy - clean
        # A microphone colours the noise too: successive samples are no longer independent.
        both += float(np.corrcoef(noise[1:], noise[:-1])[0, 1]) > 0.2
    assert 0 < both < 10


def test_levels_reach_from_a_whisper_to_full_scale(tones):
    levels = [20 * np.log10(rms(mixer(*tones)[number][0].numpy())) for number in range(200)]
    assert -60.1 < min(levels) < -57
    assert -18 < max(levels) < -14.9
    assert np.mean(levels) == pytest.approx(-37.5, abs=3)


def test_an_offset_is_in_the_noisy_signal_alone(tones):
    low, high = 100.0, 0.0
    for noisy, clean in (mixer(*tones, offset=1.0, clean=1.0)[number] for number in range(50)):
        difference = (noisy - clean)[0].numpy()
        assert np.ptp(difference) < 1e-6 and noisy.abs().max() < 0.9901
        ratio = abs(float(difference.mean())) / rms(clean[0].numpy())
        low, high = min(low, ratio), max(high, ratio)
    assert 0.09 < low < 0.2 and 1.5 < high < 3.2


def test_digital_silence_is_in_both_at_the_beginning_or_within(tones):
    leading = 0
    for noisy, clean in (mixer(*tones, offset=1.0, silence=1.0)[number] for number in range(40)):
        silent = np.flatnonzero(noisy[0].numpy() == 0)
        assert 0.02 * 8000 - 1 <= len(silent) <= 0.5 * 8000
        assert np.ptp(silent) == len(silent) - 1
        assert not clean[0, silent].any()
        leading += silent[0] == 0
    assert 8 < leading < 32


def test_a_batch_is_its_items(tones):
    rooms = [np.exp(-np.arange(3000) / 400).astype(np.float32)]
    names = ("babble", "coloured", "second_noise", "speed", "noise_speed", "backwards", "room", "device", "jump")
    many = dict.fromkeys((*names, "offset", "silence", "equalise", "low_pass"), 0.4)
    mix = mixer(*tones, rooms=rooms, devices=[np.float32([0.5, 1])], **{**many, "clean": 0.1, "noise_only": 0.1})
    noisy, clean = mix.renderer(collate([mix.plan(index) for index in range(24)]))
    assert noisy.shape == clean.shape == (24, 1, 8000)
    for index in range(24):
        for one, all_ in zip(mix[index], (noisy[index], clean[index]), strict=True):
            assert (one - all_).norm() <= 1e-4 * one.norm()


def test_recordings_are_played_at_other_speeds_backwards_and_no_further_than_they_go():
    tone = np.sin(2 * np.pi * 0.05 * np.arange(30_000))
    tone[:10_000] *= np.linspace(0, 1, 10_000)
    mix = mixer(np.ones(100, np.int16), (32_000 * tone).astype(np.int16))
    (track,) = [track for track in mix.plan(0).tracks if track.role == NOISE]
    renderer = Renderer(mix.speech.samples, mix.noise.samples, [], [])

    def played(**changes):
        plan = mix.plan(0)._replace(tracks=[track._replace(**changes)])
        batch = collate([plan])
        return renderer._play(mix.noise.samples, batch, batch.source == NOISE)[0].numpy()

    (piece,) = track.pieces
    for speed in (0.67, 1.4):
        heard = played(pieces=(piece._replace(source=12_000, length=16_000),), speed=speed)
        ideal = 32_000 / 32_768 * np.sin(2 * np.pi * 0.05 * (12_000 + speed * np.arange(8000)))
        assert rms((heard - ideal)[50:]) < 0.01 * rms(ideal)
    forth, back = (played(backwards=backwards) for backwards in (False, True))
    assert np.array_equal(forth, back[::-1])
    assert np.array_equal(forth, mix.noise.samples[piece.source :][:8000].numpy() / 32768)
    short = played(pieces=(piece._replace(source=12_000, length=500), piece._replace(start=1000, length=50)), speed=1.2)
    assert short[:410].any() and short[850:870].any()
    assert not short[425:825].any() and not short[890:].any()


def test_hashed_noise_is_white_and_normal():
    noise = white(torch.tensor([1, 2]), 50_000)
    assert torch.equal(noise[1], white(torch.tensor([2]), 50_000)[0])
    assert noise.mean().abs() < 0.01 and float(noise.std()) == pytest.approx(1, abs=0.01)
    assert float((noise**4).mean()) == pytest.approx(3, abs=0.1)
    assert float(torch.corrcoef(noise)[0, 1].abs()) < 0.02
    assert float((noise[:, 1:] * noise[:, :-1]).mean().abs()) < 0.02


def test_transforms_are_of_fast_sizes():
    for least in (1000, 32_000, 33_000, 41_000):
        assert least <= fast_size(least) <= 1.34 * least


def test_recipes_set_the_weights_of_sets(tmp_path):
    (tmp_path / "mine.toml").write_text("[mixing]\nroom = 0.5\n[mixing.set_weights]\nmine = 2.5\n")
    assert TrainConfig.read(tmp_path / "mine.toml").mixing.set_weights == {"mine": 2.5}
    assert "librispeech_tc100" in Recipe().set_weights


def test_the_held_out_set_is_spread_over_voices_noises_and_levels():
    rows = held_out()
    assert (len(rows), len(held_out_speakers()), len(held_out_noises())) == (60, 40, 5)
    assert len({row.language for row in rows}) > 20
    ages = [float(row.age) for row in rows if row.age]
    assert min(ages) <= 7 and max(ages) >= 35
    assert min(sum(row.sex == sex for row in rows) for sex in "fm") >= 8
    for name, low, high in (("snr_db", -5, 15), ("level_dbfs", -60, -15)):
        values = [getattr(row, name) for row in rows]
        assert (min(values), max(values)) == (low, high)
        assert np.mean(values) == pytest.approx((low + high) / 2, abs=1)


def test_held_out_speakers_and_noises_are_not_trained_on(tmp_path):
    speaker, noise = min(held_out_speakers()), min(held_out_noises())
    for value, voice in ((0.5, "one"), (0.25, speaker)):
        write(tmp_path / "speech" / "set" / voice / "1.wav", value * np.ones(1600))
    for value, name in ((0.5, "other"), (0.25, noise)):
        write(tmp_path / "noise" / name / "1.wav", value * np.ones(1600))
    source = TrainingData(tmp_path, None, TrainConfig(), 16_000)
    for bank in (source.speech, source.noise):
        assert len(bank.samples) == 1600 and bank.samples[0] == round(0.5 * 32767)


def test_held_out_mixtures_have_the_ratio_and_level_of_the_list(shared, tmp_path):
    for row in held_out()[::12]:
        noisy, clean = mixture(row, shared / "data")
        assert len(noisy) == len(clean) == round(row.seconds * 16_000)
        snr = 20 * np.log10(float(speech_level(torch.from_numpy(clean))) / rms(noisy - clean))
        assert snr == pytest.approx(row.snr_db, abs=0.01)
        level = 20 * np.log10(rms(noisy))
        assert level == pytest.approx(row.level_dbfs, abs=0.01) or np.abs([noisy, clean]).max() > 0.98


def test_the_held_out_set_is_written_with_its_list(tmp_path, monkeypatch):
    from slimse.training import held_out as module

    row = held_out()[0]
    monkeypatch.setattr(module, "held_out", lambda: (row,))
    rng = np.random.default_rng(0)
    write(tmp_path / "train" / row.speech, 0.1 * rng.standard_normal(200_000), format="FLAC")
    write(tmp_path / "train" / row.noise, 0.1 * rng.standard_normal(200_000), format="FLAC")
    render(tmp_path, tmp_path / "out")
    (listed,) = csv.DictReader((tmp_path / "out" / "mixtures.csv").read_text().splitlines())
    assert listed["speaker"] == row.speaker
    noisy, _ = soundfile.read(tmp_path / "out" / "noisy" / listed["file"])
    assert 20 * np.log10(rms(noisy)) == pytest.approx(row.level_dbfs, abs=0.01)
    shutil.rmtree(tmp_path / "out")
    write(tmp_path / "train" / row.speech, 0.1 * rng.standard_normal(2000), format="FLAC")
    with pytest.raises(ValueError, match="expected"):
        render(tmp_path, tmp_path / "out")
