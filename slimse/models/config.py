"""Configuration of `SlimDemucs` and the named presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..checks import typed
from ..width import WidthSet

LEVELS = ("running", "signal", "none")
"""What a model may divide its input by, see `SlimDemucsConfig`."""


@dataclass(frozen=True)
class RouterConfig:
    """Sizes of a `Router`.

    Args:
        filters: channels of the convolution on the noisy input.
        kernel_size: its taps, 8 ms at 16 kHz.
        stride: samples between its windows; must divide the model's samples per frame.
        units: of the diagonal GRU.
        knots: budgets at which the conditions are learnt; between them they are interpolated.

    Raises:
        ValueError: for values that do not fit together.
    """

    filters: int = 48
    kernel_size: int = 128
    stride: int = 32
    units: int = 64
    knots: int = 10

    def __post_init__(self) -> None:
        """Check that the values fit together."""
        for f in fields(self):
            value = getattr(self, f.name)
            least = 2 if f.name == "knots" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{f.name} = {value!r} of a router: expected an integer, {least} or more")
        if self.kernel_size < self.stride:
            raise ValueError(f"kernel_size = {self.kernel_size} of a router: expected at least stride = {self.stride}")


@dataclass(frozen=True)
class SlimDemucsConfig:
    """Shape of a `SlimDemucs`. The defaults are the ``paper`` preset (arXiv 2507.04879).

    Args:
        ufs: utilization factors, rising, the last 1.0.
        hidden: ``H``, channels of the first block; block ``i`` has ``growth ** (i - 1) * H``.
        growth: channel growth per level.
        level_channels: channels of every block, ``depth`` of them, instead of ``hidden`` and ``growth``: what the
            original DEMUCS makes of a ``growth`` that is no integer, or a ``max_hidden``.
        depth: ``L``, number of encoder (and decoder) blocks.
        kernel_size: ``K`` of every (transposed) convolution, a multiple of ``stride``.
        stride: ``S``, a multiple of ``resample``.
        resample: ``U``, sinc up-sampling of the input: 1, 2 or 4.
        rnn: ``"gru"`` (grouped, one layer, never slimmed) or ``"lstm"`` (``rnn_layers`` layers, slimmed).
        groups: ``M``, groups of the GRU; must divide the deepest channel count.
        rnn_layers: layers of the LSTM.
        causal: False makes the LSTM bidirectional (offline use only).
        level: what the input is divided by and the output multiplied with. ``"running"``: the level so far, sample by
            sample (`RunningLevel`). ``"signal"``: the standard deviation of the whole signal, as the original DEMUCS
            has it, which is not causal. ``"none"``: nothing.
        floor: added to the deviation of the whole signal before the division.
        sample_rate: of input and output, Hz.
        router: what chooses the UF of every frame (`Router`), or None; needs a causal model with another ``level`` than
            ``"signal"``.

    Raises:
        ValueError: for values that do not fit together; the message names the value and what was expected.
    """

    ufs: WidthSet = field(default_factory=lambda: WidthSet((0.125, 0.25, 0.5, 1.0)))
    hidden: int = 32
    growth: int = 2
    level_channels: tuple[int, ...] | None = None
    depth: int = 5
    kernel_size: int = 8
    stride: int = 4
    resample: int = 4
    rnn: str = "gru"
    groups: int = 4
    rnn_layers: int = 1
    causal: bool = True
    level: str = "running"
    floor: float = 1e-3
    sample_rate: int = 16_000
    router: RouterConfig | None = None

    def __post_init__(self) -> None:
        """Check that the values fit together."""
        object.__setattr__(self, "ufs", WidthSet(self.ufs))
        for name in ("hidden", "growth", "depth", "kernel_size", "stride", "groups", "rnn_layers", "sample_rate"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} = {value!r}: expected a positive integer")
        counts = self.level_channels
        if counts is not None:
            object.__setattr__(self, "level_channels", tuple(counts))
            if len(counts) != self.depth or counts[0] != self.hidden or min(counts) < 1:
                raise ValueError(
                    f"level_channels = {counts}: expected depth = {self.depth} positive integers, the first of them "
                    f"hidden = {self.hidden}"
                )
        if self.resample not in (1, 2, 4):
            raise ValueError(f"resample = {self.resample!r}: expected 1, 2 or 4")
        if self.kernel_size % self.stride:
            raise ValueError(f"kernel_size = {self.kernel_size}: expected a multiple of stride = {self.stride}")
        if self.stride % self.resample:
            raise ValueError(f"stride = {self.stride}: expected a multiple of resample = {self.resample}")
        if self.rnn not in ("gru", "lstm"):
            raise ValueError(f"rnn = {self.rnn!r}: expected 'gru' or 'lstm'")
        if self.rnn == "gru" and (self.channels(self.depth) % self.groups or self.rnn_layers != 1 or not self.causal):
            raise ValueError(
                f"a grouped GRU is causal, has one layer, and its groups divide {self.channels(self.depth)} channels; "
                f"got causal = {self.causal}, rnn_layers = {self.rnn_layers}, groups = {self.groups}"
            )
        if self.level not in LEVELS:
            raise ValueError(f"level = {self.level!r}: expected one of {LEVELS}")
        if not self.floor > 0:
            raise ValueError(f"floor = {self.floor!r}: expected a positive number")
        if self.router is not None:
            self._check_router(self.router)

    def _check_router(self, router: RouterConfig) -> None:
        if not self.causal or self.level == "signal" or len(self.ufs) < 2:
            raise ValueError(
                "a router needs a causal model with two UFs or more whose level is not that of the whole signal; "
                f"got causal = {self.causal}, level = {self.level!r}, ufs = {tuple(self.ufs)}"
            )
        hop = self.stride**self.depth // self.resample
        if hop % router.stride:
            raise ValueError(f"stride = {router.stride} of the router: expected a divisor of {hop} samples per frame")

    def channels(self, level: int) -> int:
        """Channels at ``level``: 1 for the waveform (level 0), then ``growth ** (level - 1) * hidden`` or as listed."""
        if level and self.level_channels is not None:
            return self.level_channels[level - 1]
        return 1 if level == 0 else self.growth ** (level - 1) * self.hidden

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; `from_dict` is the inverse."""
        values = asdict(self) | {"ufs": list(self.ufs)}
        if self.level_channels is None:
            # Files of models that need no such list stay readable by earlier versions.
            del values["level_channels"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SlimDemucsConfig:
        """Build from plain values; an unknown key or a value of another type raises a `ValueError` that names it."""
        return cls(**typed(cls, values, "a model configuration"))


def _original(hidden: int, *, causal: bool = True) -> SlimDemucsConfig:
    """The original DEMUCS denoiser (arXiv 2006.12847) of ``hidden`` channels."""
    return SlimDemucsConfig(hidden=hidden, rnn="lstm", rnn_layers=2, level="signal", causal=causal)


PRESETS: dict[str, SlimDemucsConfig] = {
    "paper": SlimDemucsConfig(),
    "dynamic": SlimDemucsConfig(router=RouterConfig()),
    "small": SlimDemucsConfig(hidden=8, depth=3, resample=2, groups=2),
    "dns48": _original(48),
    "dns64": _original(64),
    "dns48-bidirectional": _original(48, causal=False),
    "dns64-bidirectional": _original(64, causal=False),
}
"""``paper``: the backbone of arXiv 2507.04879, ``dynamic``: with a router. ``small``: for tests. The others: the
original DEMUCS denoiser."""
