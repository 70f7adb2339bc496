"""One noisy file at every UF and by the router: the sound, a picture of it, and what it costs."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from .atomic import written_whole
from .audio.enhance import block_length, enhance, enhance_file
from .audio.files import read_blocks, read_info, read_tags
from .audio.writing import AtomicWriter
from .demo_page import demo_page
from .model import SlimModel
from .profiling import profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

PICTURE_SECONDS = 60.0
"""How much of a file the picture shows; its sound is written whole."""
_WINDOW_SECONDS = 0.032
_COLUMNS = 1200
"""Most columns of a spectrogram, about as many as the picture has pixels across."""
_RANGE_DB = 60.0
BUDGET = 0.25
"""Of the router's row."""


@dataclass(frozen=True)
class DemoRow:
    """One UF of a demo, or what the router made of a budget."""

    uf: float
    """Mean over the frames."""
    budget: float | None
    """None for a row of one UF."""
    chosen: NDArray[np.float32]
    """UF of every frame, ``[frames]``."""
    path: Path
    """The enhanced file."""
    macs_per_sample: float
    share: float
    """Of the MACs at UF 1.0."""
    seconds: float
    """That enhancing took, reading and writing included."""
    real_time_factor: float
    """``seconds`` over the length of the sound: below 1 is faster than real time."""


def bundled_clip() -> Path:
    """Return the clip that comes with the package; ``README.md`` beside it names its sources and licence."""
    return Path(str(resources.files("slimse") / "assets" / "noisy.flac"))


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def check_plotting() -> None:
    """Make sure that pictures can be drawn.

    Raises:
        ModuleNotFoundError: if matplotlib is missing; the message says what to install.
    """
    if not can_plot():
        raise ModuleNotFoundError("the picture needs matplotlib: pip install 'slimse[plot]'", name="matplotlib")


def run_demo(
    source: str | os.PathLike[str], folder: str | os.PathLike[str], model: SlimModel, *, force: bool = False
) -> list[DemoRow]:
    """Write ``noisy.wav``, ``enhanced_uf*.wav`` per UF, ``enhanced_auto.wav`` and ``demo.html`` into ``folder``.

    Where matplotlib is installed, also ``demo.png``: all spectrograms as one picture.

    Args:
        source: noisy file of any rate and number of channels, which the outputs keep.
        folder: made if it is missing.
        model: what enhances, at all of its UFs and, if it has a router, at the budget `BUDGET`.
        force: replace files of these names.

    Returns:
        One row per UF, rising, and the router's.

    Raises:
        FileNotFoundError: if there is no ``source``.
        ValueError: if ``source`` cannot be read, or is one of the files to write.
        FileExistsError: if a file to write exists, unless ``force``; nothing has been written then.
    """
    source, folder = Path(source), Path(folder)
    if not source.is_file():
        raise FileNotFoundError(f"no such file: {source}")
    info = read_info(source)
    targets: dict[float | None, Path] = {uf: folder / f"enhanced_uf{uf:g}.wav" for uf in model.ufs}
    if model.router is not None:
        targets[None] = folder / "enhanced_auto.wav"
    noisy, picture, page = folder / "noisy.wav", folder / "demo.png", folder / "demo.html"
    _check_targets(source, [noisy, *targets.values(), page, *([picture] * can_plot())], force=force)
    duration = _copy(source, noisy, force=force)
    costs = profile(model)
    fixed = {width.uf: width.macs_per_sample for width in costs.widths}
    rows = []
    for uf, target in targets.items():
        budget = BUDGET if uf is None else None
        # The first call at a UF prepares its weights; that must not count.
        silence = np.zeros((info.channels, info.sample_rate // 4), np.float32)
        enhance(silence, info.sample_rate, uf, budget=budget, model=model)
        start = time.perf_counter()
        chosen = enhance_file(source, target, model, uf, budget=budget, force=force).ufs
        seconds = time.perf_counter() - start
        macs = costs.macs_per_sample(torch.from_numpy(chosen)) if uf is None else fixed[uf]
        share = macs / costs.widths[-1].macs_per_sample
        rows.append(DemoRow(float(chosen.mean()), budget, chosen, target, macs, share, seconds, seconds / duration))
    with written_whole(page) as part:
        part.write_text(demo_page(noisy, rows, source.name, PICTURE_SECONDS), encoding="utf-8")
    if can_plot():
        draw(noisy, rows, picture, title=source.name)
    return rows


def _check_targets(source: Path, targets: Sequence[Path], *, force: bool) -> None:
    for target in targets:
        if target.resolve() == source.resolve():
            raise ValueError(f"{source} is one of the files to write: choose another folder")
        if target.exists() and not force:
            raise FileExistsError(f"{target} exists already (--force replaces it)")


def _copy(source: Path, target: Path, *, force: bool) -> float:
    """Write ``source`` as a WAV file and return its length in seconds, which a header may give wrongly."""
    info = read_info(source)
    samples = 0
    with AtomicWriter(target, info, tags=read_tags(source), force=force) as writer:
        for block in read_blocks(source, block_length(info.sample_rate, info.channels)):
            writer.write(block)
            samples += block.shape[1]
        if not samples:
            raise ValueError(f"{source}: the signal is empty: expected 1 sample or more")
    return samples / info.sample_rate


def spectrogram(signal: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
    """Level of every time and frequency in dB, 0 dB being a sine at full scale.

    Args:
        signal: ``[n]``, 1 sample or more.
        sample_rate: Hz.

    Returns:
        ``[frequencies, times]`` from 0 to half the sample rate, and from the first to the last sample. Windows last
        32 ms and start every 8 ms, or less often where that would give more columns than a picture can show.
    """
    size = max(2 * round(_WINDOW_SECONDS * sample_rate / 2), 2)
    hop = max(size // 4, -(-len(signal) // _COLUMNS), 1)
    window = torch.hann_window(size)
    # "constant" pads any length; "reflect" needs a signal longer than half a window.
    bins = torch.stft(torch.from_numpy(signal), size, hop, window=window, pad_mode="constant", return_complex=True)
    level = 20 * torch.log10(bins.abs() * (2 / window.sum()) + 1e-9)
    return np.asarray(level.numpy(), dtype=np.float32)


def colour_range(level: NDArray[np.float32]) -> tuple[float, float]:
    """Lowest and highest level of the colours, dB, from what is loudest in the noisy file.

    All pictures share it: only so can they be compared by eye.
    """
    top = 5.0 * float(np.ceil(np.percentile(level, 99.9) / 5))
    return top - _RANGE_DB, top


def draw(noisy: Path, rows: Sequence[DemoRow], picture: Path, *, title: str) -> None:
    """Draw the spectrograms of the noisy and all enhanced files, one below the other, into a PNG file.

    Args:
        noisy: audio file.
        rows: of the enhanced files, each as long as ``noisy``.
        picture: file to write.
        title: above all of them, usually the name of the noisy file.
    """
    # The object interface: pyplot would keep the figure, and pick a backend that may need a screen.
    from matplotlib.figure import Figure

    info = read_info(noisy)
    shown = min(info.frames, round(PICTURE_SECONDS * info.sample_rate))
    levels = [
        spectrogram(first_samples(path, shown), info.sample_rate) for path in (noisy, *(row.path for row in rows))
    ]
    _, top = colour_range(levels[0])
    figure = Figure(figsize=(10, 0.9 + 1.75 * len(levels)), dpi=150, layout="constrained")
    note = f", first {PICTURE_SECONDS:.0f} s" if shown < info.frames else ""
    figure.suptitle(f"SlimSE: {title}{note}".replace("$", r"\$"), fontsize=12, fontweight="bold")
    axes = figure.subplots(len(levels), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    extent = (0.0, shown / info.sample_rate, 0.0, info.sample_rate / 2000)
    for axis, level in zip(axes, levels, strict=True):
        image = _panel(axis, level, extent, top)
    axes[0].set_title("noisy", loc="left", fontsize=10, fontweight="bold")
    for axis, row in zip(axes[1:], rows, strict=True):
        name = f"UF {row.uf:g}" if row.budget is None else f"router, budget {row.budget:g}: average UF {row.uf:.2f}"
        axis.set_title(name, loc="left", fontsize=10, fontweight="bold")
        axis.set_title(f"{row.macs_per_sample:,.0f} MACs/sample ({row.share:.0%})", loc="right", fontsize=10)
        if row.budget is not None:
            _overlay(axis, row.chosen, info.frames / info.sample_rate, [row.uf for row in rows if row.budget is None])
    axes[-1].set_xlabel("time [s]")
    figure.supylabel("frequency [kHz]", fontsize=10)
    bar = figure.colorbar(image, ax=list(axes), pad=0.01, aspect=12 * len(levels))
    bar.set_label("level [dB, 0 dB: sine at full scale]")
    with written_whole(picture) as part:
        figure.savefig(part, format="png")


def _overlay(axis: Axes, chosen: NDArray[np.float32], seconds: float, ufs: Sequence[float]) -> None:
    """Draw the UF of every frame over a spectrogram, on an axis of its own on the right."""
    right = axis.twinx()
    right.step(np.linspace(0, seconds, len(chosen), endpoint=False), chosen, where="post", color="white", lw=0.8)
    right.set_yscale("log", base=2)
    right.set_ylim(ufs[0] / 1.3, ufs[-1] * 1.3)
    right.set_yticks(ufs, [f"{uf:g}" for uf in ufs], fontsize=8)
    right.minorticks_off()


def first_samples(path: Path, samples: int) -> NDArray[np.float32]:
    """Read the first ``samples`` samples of a file, as the mean of its channels."""
    audio, _ = soundfile.read(path, frames=samples, dtype="float32", always_2d=True)
    return np.asarray(audio.mean(axis=1), dtype=np.float32)


def _panel(axis: Axes, level: NDArray[np.float32], extent: tuple[float, float, float, float], top: float) -> AxesImage:
    axis.tick_params(labelsize=9)
    return axis.imshow(
        level, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=top - _RANGE_DB, vmax=top
    )
