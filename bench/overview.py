"""Draw the picture at the top of the README: one clip, the widths that the router chose, and quality over cost.

    python -m bench.overview [--clip FILE] [--budget 0.25] [--out docs/images/overview.png]

Scores are read from ``bench/results/quality.json`` (see ``bench/tables.py``). Needs matplotlib. Draw it again whenever
the bundled weights change.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

import slimse
from bench.tables import QUALITY, ROOT
from slimse import SlimModel
from slimse.demo import bundled_clip, spectrogram
from slimse.profiling import profile

FIXED, ROUTED = "#4477aa", "#cc3311"
RANGE_DB = 60.0


def draw_clip(axes: list[Axes], model: SlimModel, clip: Path, budget: float) -> None:
    """Spectrograms of the noisy and the enhanced clip, and the UF of every frame below them."""
    noisy, rate = soundfile.read(clip, dtype="float32")
    if noisy.ndim > 1 or rate != model.sample_rate:
        raise ValueError(f"{clip}: expected one channel at {model.sample_rate} Hz")
    signal = torch.from_numpy(noisy)[None, None]
    with torch.inference_mode():
        enhanced = model(signal, budget=budget)[0, 0].numpy()
        ufs = model.route(signal, budget=budget)[0]
    top = float(np.percentile(spectrogram(noisy, rate), 99.9))
    for axis, sound, title in ((axes[0], noisy, "noisy"), (axes[1], enhanced, "enhanced")):
        _draw_spectrogram(axis, sound, rate, top)
        axis.set_title(title, fontsize=10, loc="left")
    hop, seconds = profile(model).hop, len(noisy) / rate
    axes[2].stairs(ufs.numpy(), np.arange(len(ufs) + 1) * hop / rate, baseline=None, color=ROUTED, lw=1.4)
    axes[2].set_yscale("log", base=2)
    axes[2].set_yticks(model.ufs, [f"{uf:g}" for uf in model.ufs])
    axes[2].set_ylim(model.ufs[0] / 1.4, 1.4)
    axes[2].set_xlim(0, seconds)
    axes[2].grid(alpha=0.3)
    axes[2].set_ylabel("UF")
    axes[2].set_xlabel("time [s]")
    title = f"width that the router chose for every {1000 * hop / rate:g} ms (budget {budget:g})"
    axes[2].set_title(title, fontsize=10, loc="left")


def _draw_spectrogram(axis: Axes, sound: NDArray[np.float32], rate: int, top: float) -> None:
    extent = (0.0, len(sound) / rate, 0.0, rate / 2000)
    level = spectrogram(sound, rate)
    axis.imshow(level, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=top - RANGE_DB, vmax=top)
    axis.tick_params(labelbottom=False)
    axis.set_ylabel("kHz")


def draw_quality(axis: Axes, rows: list[dict[str, Any]], files: int) -> None:
    """SI-SDR over MACs per sample: fixed widths with the line between them, budgets of the router as points."""
    noisy = next(row for row in rows if row["uf"] is None)
    fixed = [row for row in rows if row["uf"] is not None and row["budget"] is None]
    routed = [row for row in rows if row["budget"] is not None]
    points = [(row["macs_per_sample"], row["si_sdr"]) for row in fixed]
    # What a router reaches that draws widths by lot, if changing them costs nothing.
    axis.plot(*zip(*points, strict=True), color=FIXED, lw=1, alpha=0.6)
    for group, key, marker, colour, label in (
        (fixed, "uf", "s", FIXED, "fixed width, and its UF"),
        (routed, "budget", "o", ROUTED, "router, and its budget"),
    ):
        points = [(row["macs_per_sample"], row["si_sdr"]) for row in group]
        axis.plot(*zip(*points, strict=True), marker, color=colour, ms=6, label=label)
        below = marker == "s"
        for row, point in zip(group, points, strict=True):
            offset, side = ((6, -12), "left") if below else ((-6, 6), "right")
            axis.annotate(f"{row[key]:g}", point, offset, textcoords="offset points", fontsize=9, color=colour, ha=side)
    axis.margins(0.1, 0.14)
    axis.grid(alpha=0.3)
    axis.xaxis.set_major_formatter(lambda macs, _: f"{macs / 1000:g}k")
    axis.set_xlabel("MACs per sample, router included")
    axis.set_ylabel("SI-SDR [dB]")
    axis.legend(fontsize=9, loc="lower right")
    axis.set_title(f"mean of {files} mixtures; noisy input {noisy['si_sdr']:.1f} dB", fontsize=10, loc="left")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", type=Path, default=bundled_clip(), help="noisy speech, one channel")
    parser.add_argument("--budget", type=float, default=0.25)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "overview.png")
    args = parser.parse_args()
    result = json.loads(QUALITY.read_text(encoding="utf-8"))
    figure = Figure(figsize=(11, 5), dpi=120, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(6, 5), wspace=0.03)
    draw_clip(list(left.subplots(3, 1, height_ratios=(3, 3, 2))), slimse.load(), args.clip, args.budget)
    draw_quality(right.subplots(), result["means"], result["file_count"])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, facecolor="white")
    print(args.out)


if __name__ == "__main__":
    main()
