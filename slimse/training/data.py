"""The data of a run: fixed pairs to watch, and mixtures that depend on the step alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import lightning
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from ..audio.files import read_mono
from ..evaluation import Pair as FilePair
from ..evaluation import find_pairs
from ..processes import end_with_parent
from .bank import Bank, load_devices, load_rooms
from .config import TrainConfig
from .held_out import held_out_noises, held_out_speakers
from .mixing import Mixer
from .rendering import Batch, Plan, Renderer, collate

Pair: TypeAlias = tuple[Tensor, Tensor]


_PAIR_FOLDERS = (("noisy_trainset_28spk_wav", "clean_trainset_28spk_wav"), ("noisy", "clean"))
"""Sub-folders of pairs: those of VoiceBank+DEMAND as it is distributed, and plain names."""


def _start_worker(number: int) -> None:
    sys.excepthook = _tell_faults
    end_with_parent()


def _tell_faults(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback; but not where the training, which has ended, stops to take what this process hands over."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def training_pairs(data: Path) -> list[FilePair]:
    """Pairs of files below ``data`` where it holds pairs (see `TrainingData`), else none."""
    for noisy, clean in _PAIR_FOLDERS:
        if (data / noisy).is_dir() and (data / clean).is_dir():
            return find_pairs(data / noisy, data / clean)
    return []


class WatchedPairs(Dataset[Pair]):
    """Some of the given pairs, at most 4 s of each."""

    def __init__(self, pairs: Sequence[FilePair], count: int, sample_rate: int) -> None:
        self.pairs = pairs[:: max(1, len(pairs) // count)][:count]
        self.sample_rate = sample_rate

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        """Noisy and clean, ``[1, samples]`` each."""
        pair = self.pairs[index]
        noisy, clean = (read_mono(path, self.sample_rate)[: 4 * self.sample_rate] for path in (pair.noisy, pair.clean))
        return torch.from_numpy(noisy)[None], torch.from_numpy(clean)[None]


class PairSegments(Dataset[Pair]):
    """Random segments of recorded pairs; like `Mixer`, item ``n`` is a function of seed and number alone.

    Args:
        pairs: to draw from, each as often as any other.
        length: samples per segment; what is shorter is followed by silence.
        size: number of items.
        seed: of the run.
        offset: number of the first item.
        sample_rate: Hz; files of other rates are resampled.
    """

    def __init__(
        self, pairs: Sequence[FilePair], length: int, size: int, seed: int, offset: int, sample_rate: int
    ) -> None:
        self.pairs, self.length, self.size = pairs, length, size
        self.seed, self.offset, self.sample_rate = seed, offset, sample_rate

    def __len__(self) -> int:
        """Number of items."""
        return self.size

    def __getitem__(self, index: int) -> Pair:
        """Noisy and clean, ``[1, length]`` each."""
        rng = np.random.default_rng([self.seed, self.offset + index])
        pair = self.pairs[int(rng.integers(len(self.pairs)))]
        both = [torch.from_numpy(read_mono(path, self.sample_rate)) for path in (pair.noisy, pair.clean)]
        start = int(rng.integers(max(min(map(len, both)) - self.length, 0) + 1))
        cut = [audio[start : start + self.length] for audio in both]
        noisy, clean = (F.pad(audio, (0, self.length - len(audio)))[None] for audio in cut)
        return noisy, clean


class Plans(Dataset[Plan]):
    """What the items of a mixer are made of, for a device to render."""

    def __init__(self, mixer: Mixer) -> None:
        self.mixer = mixer

    def __len__(self) -> int:
        """Number of items."""
        return len(self.mixer)

    def __getitem__(self, index: int) -> Plan:
        """Plan of item ``index``."""
        return self.mixer.plan(index)


class TrainingData(lightning.LightningDataModule):
    """Dynamic mixtures of ``data/speech``, ``data/noise`` and ``data/rir`` (see `Mixer`), or recorded pairs.

    Speakers and sets of noise of the validation set `held_out` are left out.

    Args:
        data: a folder with the three, of which ``rir`` may be missing; or one with pairs of files of the same name in
            ``noisy`` and ``clean``, or in the training folders of VoiceBank+DEMAND (28 speakers).
        valid: folder with ``noisy`` and ``clean`` to watch; None watches the pairs of ``config.valid_speakers``.
        config: of the run.
        sample_rate: Hz.
        mix_on_device: mix where the model trains, the recordings in its memory; the loader's processes draw what to mix
            and no more. Otherwise they mix as well. Recorded pairs know no difference.

    Raises:
        ValueError: for a folder with neither, or pairs that are all of the watched speakers.
    """

    def __init__(
        self, data: Path, valid: Path | None, config: TrainConfig, sample_rate: int, mix_on_device: bool = False
    ) -> None:
        super().__init__()
        self.config, self.sample_rate, self.mix_on_device = config, sample_rate, mix_on_device
        self._renderer: Renderer | None = None
        self.measured: TensorDataset | None = None
        """What stage ``router`` trains on in place of fresh items; see `slimse.training.routing.measured`."""
        held = tuple(f"{speaker}_" for speaker in config.valid_speakers)
        pairs = training_pairs(data)
        self.pairs = [pair for pair in pairs if not Path(pair.name).name.startswith(held)]
        watched = find_pairs(valid / "noisy", valid / "clean") if valid else [p for p in pairs if p not in self.pairs]
        self.watched = WatchedPairs(watched, config.valid_items, sample_rate) if watched else None
        if pairs:
            if not self.pairs:
                raise ValueError(f"{data} holds pairs of {config.valid_speakers} alone: expected others too")
            return
        weights = config.mixing.set_weights
        speakers, noises = held_out_speakers(), held_out_noises()
        self.speech = Bank.load(data / "speech", sample_rate, voices=True, set_weights=weights, exclude=speakers)
        self.noise = Bank.load(data / "noise", sample_rate, exclude=noises)
        self.rooms = load_rooms(data / "rir", sample_rate)
        self.devices = load_devices(data / "rir", sample_rate)

    def items(self, offset: int, size: int, seed: int, seconds: float) -> Dataset[Pair]:
        """``size`` items from number ``offset`` on: functions of the seed and their number alone."""
        length = int(seconds * self.sample_rate)
        if self.pairs:
            return PairSegments(self.pairs, length, size, seed, offset, self.sample_rate)
        return Mixer(
            *(self.speech, self.noise, self.rooms, length, size, seed, offset),
            sample_rate=self.sample_rate,
            recipe=self.config.mixing,
            devices=self.devices,
        )

    def train_dataloader(self) -> DataLoader[Pair]:
        """The items of the next ``val_interval`` steps: they depend on the step alone, so a resumed run sees the same.

        Process ``r`` of ``n`` takes every ``n``-th, so that all of them together see in a step what one with ``n``
        times the batch would.
        """
        config = self.config
        assert self.trainer is not None
        processes, rank = self.trainer.world_size, self.trainer.global_rank
        if self.measured is not None:
            # Of every step anew, so that a resumed run sees the same.
            steps = range(self.trainer.global_step, self.trainer.global_step + config.val_interval)
            together = min(config.batch * processes, len(self.measured))
            draws = (np.random.default_rng([config.seed, step, 2]).permutation(len(self.measured)) for step in steps)
            drawn = [int(index) for draw in draws for index in draw[:together][rank::processes]]
            chosen: Subset[Any] = Subset(self.measured, drawn)  # type: ignore[arg-type]
            return DataLoader(chosen, batch_size=config.batch)
        size = config.batch * processes * config.val_interval
        items = self.items(self.trainer.global_step * config.batch * processes, size, config.seed, config.seconds)
        planned = self.mix_on_device and isinstance(items, Mixer)
        part: Subset[Any] = Subset(Plans(items) if planned else items, range(rank, size, processes))  # type: ignore[arg-type]
        # A fork of a process with threads may never come to life: better an error, after which the run can go on.
        patience = 300 if config.workers else 0
        return DataLoader(
            part,
            batch_size=config.batch,
            num_workers=config.workers,
            timeout=patience,
            collate_fn=collate if planned else None,
            worker_init_fn=_start_worker if config.workers else None,
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move pairs of signals, and make signals of plans."""
        if not isinstance(batch, Batch):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        if self._renderer is None or self._renderer.device != device:
            banks = self.speech.samples, self.noise.samples
            self._renderer = Renderer(*banks, self.rooms, self.devices, device)
        return self._renderer(batch)

    def val_dataloader(self) -> DataLoader[Pair] | list[DataLoader[Pair]]:
        """The fixed pairs, one at a time."""
        return DataLoader(self.watched, batch_size=1) if self.watched else []
