"""The data of a run: fixed pairs to watch, and mixtures that depend on the step alone."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from ..audio.files import read_mono
from .config import TrainConfig
from .mixing import Bank, Mixer, load_rooms

Pair: TypeAlias = tuple[Tensor, Tensor]


class WatchedPairs(Dataset[Pair]):
    """Fixed pairs of ``noisy`` and ``clean`` files of the same name, at most 4 s of each."""

    def __init__(self, folder: Path, count: int, sample_rate: int) -> None:
        names = sorted(path.name for path in (folder / "noisy").iterdir())
        self.files = [
            (folder / "noisy" / name, folder / "clean" / name) for name in names[:: max(1, len(names) // count)][:count]
        ]
        self.sample_rate = sample_rate

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.files)

    def __getitem__(self, index: int) -> Pair:
        """Noisy and clean, ``[1, samples]`` each."""
        noisy, clean = (read_mono(path, self.sample_rate)[: 4 * self.sample_rate] for path in self.files[index])
        return torch.from_numpy(noisy)[None], torch.from_numpy(clean)[None]


class TrainingData(lightning.LightningDataModule):
    """Dynamic mixtures of ``data/speech``, ``data/noise`` and ``data/rir``; see `Mixer`.

    Args:
        data: the folder with the three; ``rir`` may be missing.
        valid: folder with ``noisy`` and ``clean``, or None for no validation.
        config: of the run.
        sample_rate: Hz.
    """

    def __init__(self, data: Path, valid: Path | None, config: TrainConfig, sample_rate: int) -> None:
        super().__init__()
        self.config, self.sample_rate = config, sample_rate
        self.pairs = WatchedPairs(valid, config.valid_items, sample_rate) if valid else None
        self.speech = Bank.load(data / "speech", sample_rate)
        self.noise = Bank.load(data / "noise", sample_rate)
        self.rooms = load_rooms(data / "rir", sample_rate) if (data / "rir").is_dir() else []

    def items(self, offset: int, size: int, seed: int, seconds: float) -> Dataset[Pair]:
        """``size`` items from number ``offset`` on: functions of the seed and their number alone."""
        return Mixer(
            self.speech,
            self.noise,
            self.rooms,
            # A multiple of 20, the pieces in which the mixer looks for active speech.
            length=int(seconds * self.sample_rate) // 20 * 20,
            size=size,
            seed=seed,
            offset=offset,
            sample_rate=self.sample_rate,
            recipe=self.config.mixing,
        )

    def train_dataloader(self) -> DataLoader[Pair]:
        """The items of the next ``every`` steps: they depend on the step alone, so a resumed run sees the same.

        Process ``r`` of ``n`` takes every ``n``-th, so that all of them together see in a step what one with ``n``
        times the batch would.
        """
        config = self.config
        assert self.trainer is not None
        processes, rank = self.trainer.world_size, self.trainer.global_rank
        size = config.batch * processes * config.every
        items = self.items(self.trainer.global_step * config.batch * processes, size, config.seed, config.seconds)
        part = Subset(items, range(rank, size, processes))
        return DataLoader(part, batch_size=config.batch, num_workers=config.workers)

    def val_dataloader(self) -> DataLoader[Pair] | list[DataLoader[Pair]]:
        """The fixed pairs, one at a time."""
        return DataLoader(self.pairs, batch_size=1) if self.pairs else []
