"""The Lightning module, its data, and the run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio as si_sdr

from ..audio.files import read_mono
from ..checkpoint import save
from ..models import PRESETS, SlimDemucs
from .config import TrainConfig
from .losses import EnhancementLoss
from .mixing import Bank, Mixer, load_rooms
from .optimizer import MuonAdamW

Pair: TypeAlias = tuple[Tensor, Tensor]


class SlimmableBackbone(lightning.LightningModule):
    """Trains all widths of a `SlimDemucs` together.

    Every step runs the widest UF on the whole batch, and the smallest, a random one between, or both on a part of it;
    the narrow ones learn from the clean signal and from the widest one's output.

    Args:
        config: of the run.
        model: the network to train.
    """

    def __init__(self, config: TrainConfig, model: SlimDemucs) -> None:
        super().__init__()
        self.config, self.model = config, model
        self.loss = EnhancementLoss(spectral=config.spectral, error_level=config.error_level, loudness=config.loudness)

    def training_step(self, batch: Pair, index: int) -> Tensor:
        """Sum of the losses of the widths of this step."""
        noisy, clean = batch
        config, ufs = self.config, self.model.config.ufs
        wide = self.model(noisy, ufs[-1])
        loss = self.loss(wide, clean, noisy)
        self.log(f"train/{ufs[-1]}", loss.detach())
        rng = np.random.default_rng([config.seed, self.global_step])
        narrow_ufs = [ufs[0], float(rng.choice(ufs[1:-1] or ufs[:1]))] if len(ufs) > 1 else []
        if config.narrow_widths == 1:
            narrow_ufs = narrow_ufs[self.global_step % 2 :][:1]
        # A different part of the batch for each, so that no item is left to the widest width alone for long.
        for uf in narrow_ufs:
            part = torch.from_numpy(rng.permutation(len(noisy))[: config.narrow_batch])
            some_noisy, some_clean = noisy[part], clean[part]
            narrow = self.model(some_noisy, uf)
            level = some_noisy.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-4)
            teacher = ((narrow - wide[part].detach()).float() / level).abs().mean()
            own = self.loss(narrow, some_clean, some_noisy)
            self.log(f"train/{uf}", own.detach())
            loss = loss + own + config.distill * teacher
        return loss

    def validation_step(self, batch: Pair, index: int) -> None:
        """SI-SDR and loss of the narrowest and the widest UF."""
        noisy, clean = batch
        for uf in (self.model.config.ufs[0], self.model.config.ufs[-1]):
            enhanced = self.model(noisy, uf)
            self.log(f"valid/si_sdr/{uf}", si_sdr(enhanced.float(), clean).mean(), prog_bar=True, batch_size=1)
            self.log(f"valid/loss/{uf}", self.loss(enhanced, clean, noisy), batch_size=1)

    def configure_optimizers(self) -> Any:
        """Muon and AdamW; linear warm-up, a plateau, and a tail down to zero."""
        config = self.config
        optimizer = MuonAdamW(self.model.named_parameters(), config.rate, weight_decay=config.weight_decay)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate_factor(config))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _rate_factor(config: TrainConfig) -> Callable[[int], float]:
    def factor(step: int) -> float:
        tail_start = config.steps * (1 - config.decay)
        warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
        if step <= tail_start:
            return warm
        progress = min(1.0, (step - tail_start) / max(config.steps - tail_start, 1))
        return warm * float(1 - progress**0.5)

    return factor


class _Pairs(Dataset[Pair]):
    """Fixed pairs of ``noisy`` and ``clean`` files of the same name, at most 4 s of each."""

    def __init__(self, folder: Path, count: int, sample_rate: int) -> None:
        names = sorted(path.name for path in (folder / "noisy").iterdir())
        self.files = [
            (folder / "noisy" / name, folder / "clean" / name) for name in names[:: max(1, len(names) // count)][:count]
        ]
        self.sample_rate = sample_rate

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Pair:
        noisy, clean = (read_mono(path, self.sample_rate)[: 4 * self.sample_rate] for path in self.files[index])
        return torch.from_numpy(noisy)[None], torch.from_numpy(clean)[None]


class MixingData(lightning.LightningDataModule):
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
        self.pairs = _Pairs(valid, config.valid_items, sample_rate) if valid else None
        self.speech = Bank.load(data / "speech", sample_rate)
        self.noise = Bank.load(data / "noise", sample_rate)
        self.rooms = load_rooms(data / "rir", sample_rate) if (data / "rir").is_dir() else []

    def train_dataloader(self) -> DataLoader[Pair]:
        """The items of the next ``every`` steps: they depend on the step alone, so a resumed run sees the same."""
        config = self.config
        assert self.trainer is not None
        processes, rank = self.trainer.world_size, self.trainer.global_rank
        size = config.batch * config.every
        mixer = Mixer(
            self.speech,
            self.noise,
            self.rooms,
            # A multiple of 20, the pieces in which the mixer looks for active speech.
            length=int(config.seconds * self.sample_rate) // 20 * 20,
            size=size,
            seed=config.seed,
            offset=self.trainer.global_step * config.batch * processes + rank * size,
            sample_rate=self.sample_rate,
            recipe=config.mixing,
        )
        return DataLoader(mixer, batch_size=config.batch, num_workers=config.workers)

    def val_dataloader(self) -> DataLoader[Pair] | list[DataLoader[Pair]]:
        """The fixed pairs, one at a time."""
        return DataLoader(self.pairs, batch_size=1) if self.pairs else []


def train(
    config: TrainConfig,
    data: Path,
    out: Path,
    valid: Path | None = None,
    initial: SlimDemucs | None = None,
    progress: bool = True,
) -> Path:
    """Run a recipe, or go on with it where ``out`` holds a checkpoint of it.

    Args:
        config: of the run.
        data: folder with ``speech``, ``noise`` and, if there are any, ``rir``.
        out: folder for ``last.ckpt``, logs, and the averaged weights ``model.safetensors``.
        valid: folder with ``noisy`` and ``clean`` pairs to watch, or None.
        initial: weights to start from (fine-tuning); ignored on resuming.
        progress: show a progress bar.

    Returns:
        The path of the weights.
    """
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    model = initial or SlimDemucs(PRESETS[config.preset])
    module = SlimmableBackbone(config, model)
    out.mkdir(parents=True, exist_ok=True)
    averaging = EMAWeightAveraging(decay=config.ema)
    # One file, replaced after every `config.every` steps.
    last = ModelCheckpoint(dirpath=out, filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
    trainer = lightning.Trainer(
        default_root_dir=out,
        max_steps=config.steps,
        max_epochs=-1,
        precision=config.precision,  # type: ignore[arg-type]
        gradient_clip_val=config.clip,
        callbacks=[averaging, last, LearningRateMonitor("step")],
        logger=CSVLogger(out, name="logs", flush_logs_every_n_steps=50),
        log_every_n_steps=25,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        enable_progress_bar=progress,
        enable_model_summary=False,
    )
    sample_rate = model.config.sample_rate
    checkpoint = out / "last.ckpt"
    trainer.fit(
        module,
        datamodule=MixingData(data, valid, config, sample_rate),
        ckpt_path=os.fspath(checkpoint) if checkpoint.exists() else None,
        weights_only=False,
    )
    weights = out / "model.safetensors"
    if trainer.is_global_zero:
        # At the end of `fit` the callback has put the averaged weights in place.
        save(module.model, weights, notes={"training": config.to_dict()})
    return weights
