"""Configuration of a training run: a frozen dataclass, read from a TOML recipe."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from ..checks import typed
from ..config import PRESETS, ModelConfig
from ..networks.base import network_config, with_ufs
from ..width import WidthSet
from .losses import SAMPLE_RATE
from .mixing import Recipe

STAGES = ("backbone", "router", "joint", "fixed")
PRECISIONS = ("auto", "bf16-mixed", "16-mixed", "32-true", "64-true", "bf16-true", "16-true", "transformer-engine")
_NOT_NEGATIVE = (
    *("beta", "gamma", "straight_through", "benefit_weight", "router_rate_factor", "distill", "spectral"),
    *("error_level", "pesq", "warmup", "weight_decay", "workers", "seed"),
)


@dataclass(frozen=True)
class TrainConfig:
    """One run. A recipe file holds these as TOML keys, and ``[mixing]`` the fields of `Recipe`."""

    stage: str = "backbone"
    """What is trained: ``backbone`` (all widths), ``router`` (on a frozen backbone), ``joint`` (both), or ``fixed``
    (one width alone, the baseline that slimming is compared with)."""
    preset: str = "paper"
    """The model, unless a run starts from weights. Stages with a router add one where there is none."""
    network: Mapping[str, Any] = field(default_factory=dict)
    """A network in place of the preset's: ``type``, its registered name, and the fields of its configuration."""
    ufs: tuple[float, ...] = ()
    """UFs of the model, rising, the last 1.0, instead of the preset's. Weights to start from bring their own."""
    init: str = ""
    """Weights to start from, bundled or a file, unless the caller gives some."""
    seconds: float = 2.0
    """Length of a training segment."""
    batch: int = 8
    """Segments per step and process."""
    narrow_batch: int = 4
    """How many of them a narrow width sees."""
    narrow_widths: int = 2
    """Narrow widths per step besides the widest: 1 takes turns between the smallest and a random one, 2 runs both."""
    switching: float = 0.0
    """Share of the steps in which the whole batch runs at widths that change every few frames, and nothing else: by
    lot, or wider where the sound is louder. A network that never switched in training is rough where widths change."""
    fixed_uf: float = 1.0
    """The width of stage ``fixed``."""
    budget_low: float | None = None
    budget_high: float = 1.0
    """Budgets are drawn between these, evenly in octaves; equal ones train for one target, as the paper does. None for
    the model's smallest UF."""
    beta: float = 1.0
    gamma: float = 0.01
    """Weights of `RoutingLoss`. The larger ``gamma``, the more frames get UFs far from the budget, though those between
    would bring more for the same cost."""
    budgets_per_item: int = 1
    """Budgets at which the router sees each item: in stage ``router`` they cost little."""
    measured: int = 400
    """Mixtures that stage ``router`` runs at every width before its first step. It trains on these alone, pass after
    pass: what widths are worth does not change while the backbone is frozen."""
    straight_through: float = 1.0
    """In stage ``joint``, factor on the straight-through gradient of the routed output that reaches the router. At 0
    the router learns from `benefit_weight` alone; the backbone still learns to run at what the router chooses."""
    benefit_weight: float = 10.0
    """Weight of what the widths of the step were worth at each frame (`frame_benefit`), in the router's loss. Benefits
    are about 0.1 per frame, small beside the pull to the budget. Stage ``router`` measures all widths; elsewhere those
    that do not run are taken to lie between in proportion to their octaves."""
    router_rate_factor: float = 3.0
    """Learning rate of the router, in units of that of all else."""
    temperature: float = 1.0
    temperature_end: float = 0.3
    """Of the gates: falls geometrically, and arrives where the learning rate's tail begins."""
    distill: float = 0.3
    """Weight of the L1 distance of a narrow width's output from the widest one's."""
    spectral: float = 1.0
    """Weight of the STFT part of the enhancement loss."""
    error_level: float = 0.2
    """Weight of 1 dB of waveform error in the enhancement loss."""
    pesq: float = 0.2
    """Weight of a point of `PesqDistance` in the enhancement loss."""
    steps: int = 5000
    """Optimiser steps of the whole run, resumed parts included."""
    learning_rate: float = 2e-3
    """Peak learning rate (see `MuonAdamW`)."""
    warmup: int = 200
    """Steps of linear warm-up."""
    cooldown: float = 0.3
    """Share of the steps, at the end, over which the rate falls to zero as ``1 - sqrt(progress)``."""
    weight_decay: float = 0.01
    grad_clip_norm: float = 1.0
    """Gradient norm limit."""
    ema_decay: float = 0.99
    """Decay per step of the averaged weights, which are those that are validated and exported."""
    val_interval: int = 250
    """Steps between validations and checkpoints."""
    valid_speakers: tuple[str, ...] = ()
    """Of a folder of pairs: files whose names begin with one of these and ``_`` are watched, not trained on."""
    valid_items: int = 10
    """Pairs used in the validation during training."""
    precision: str = "auto"
    """Lightning's, or ``"auto"``: ``bf16-mixed`` where the device multiplies bf16 fast, else ``32-true``."""
    workers: int = 1
    seed: int = 1
    mixing: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        """Check that the values fit together."""
        for name, known in (("preset", sorted(PRESETS)), ("stage", STAGES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} = {getattr(self, name)!r}: expected one of {list(known)}")
        positive = (
            *("seconds", "batch", "narrow_batch", "steps", "learning_rate", "grad_clip_norm", "val_interval"),
            "valid_items",
        )
        for name in (*positive, "temperature", "temperature_end"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)!r}: expected a positive number")
        # Raises for a network or UFs that there cannot be.
        _ = self.model
        if self.budget_low is not None and not 0 < self.budget_low <= self.budget_high:
            raise ValueError(f"budget_low = {self.budget_low!r}: expected a number up to {self.budget_high!r}")
        if self.narrow_widths not in (1, 2):
            raise ValueError(f"narrow_widths = {self.narrow_widths!r}: expected 1 or 2")
        if self.budgets_per_item < 1 or (self.budgets_per_item > 1 and self.stage != "router"):
            raise ValueError(f"budgets_per_item = {self.budgets_per_item}: expected 1, or more in stage 'router'")
        if self.stage == "router" and self.measured < self.batch:
            raise ValueError(f"measured = {self.measured}: expected at least batch = {self.batch}")
        if self.narrow_batch > self.batch:
            raise ValueError(f"narrow_batch = {self.narrow_batch}: expected at most batch = {self.batch}")
        for name in ("cooldown", "ema_decay", "switching"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)!r}: expected a number in [0, 1)")
        for name in _NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} = {getattr(self, name)!r}: expected 0 or more")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision = {self.precision!r}: expected one of {list(PRECISIONS)}")

    @property
    def model(self) -> ModelConfig:
        """The model of a run that starts from no weights."""
        model = ModelConfig(network_config(self.network)) if self.network else PRESETS[self.preset]
        return replace(model, network=with_ufs(model.network, WidthSet(self.ufs))) if self.ufs else model

    def for_model(self, ufs: WidthSet, sample_rate: int) -> TrainConfig:
        """The same with budgets that a model of these UFs and this rate can be trained for.

        Raises:
            ValueError: for budgets or a ``fixed_uf`` that the UFs do not allow, or another sample rate.
        """
        if sample_rate != SAMPLE_RATE:
            raise ValueError(f"sample_rate = {sample_rate} of the model: the loss supports {SAMPLE_RATE} Hz alone")
        low, high = ufs[0] if self.budget_low is None else self.budget_low, self.budget_high
        if not ufs[0] <= low <= high <= 1:
            raise ValueError(f"budget_low = {low!r}, budget_high = {high!r}: expected {ufs[0]} to 1, rising")
        if self.stage == "fixed":
            ufs.validate(self.fixed_uf)
        if self.ufs and tuple(self.ufs) != tuple(ufs):
            raise ValueError(f"ufs = {self.ufs}: expected {tuple(ufs)}, those of the weights to start from")
        return replace(self, budget_low=low)

    @property
    def routed(self) -> bool:
        """Whether the stage trains a router."""
        return self.stage in ("router", "joint")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Build from plain values; an unknown key or a value of another type raises a `ValueError` that names it."""
        return cls(**typed(cls, values, "a training recipe"))

    @classmethod
    def read(cls, recipe: str | Path) -> TrainConfig:
        """Read a recipe that comes with the package, by name (``backbone``), or any TOML file."""
        path = Path(recipe)
        if path.suffix == ".toml":
            try:
                return cls.from_dict(tomllib.loads(path.read_text(encoding="utf-8")))
            except OSError as error:
                raise ValueError(f"recipe {path}: cannot be read: {error.strerror}") from error
            except (ValueError, RecursionError) as error:
                raise ValueError(f"recipe {path}: {error}") from error
        found = resources.files(__package__) / "recipes" / f"{recipe}.toml"
        if not found.is_file():
            raise ValueError(f"recipe {str(recipe)!r}: expected a .toml file or one of {recipe_names()}")
        return cls.from_dict(tomllib.loads(found.read_text()))

    def with_settings(self, settings: Sequence[str]) -> TrainConfig:
        """A copy with keys set as on the command line: ``steps=100``, ``mixing.snr_low=-10``, ``stage=joint``.

        Values are written as in a recipe file, but text needs no quotes.

        Raises:
            ValueError: for a text without ``=``, an unknown key, or a value that a file could not hold there.
        """
        values = self.to_dict()
        for setting in settings:
            key, equals, text = setting.partition("=")
            if not equals or not key:
                raise ValueError(f"--set {setting!r}: expected key=value")
            *tables, name = key.strip().split(".")
            table = values
            for step in tables:
                table = table.setdefault(step, {})
                if not isinstance(table, dict):
                    raise ValueError(f"--set {setting!r}: {step} holds one value, no table of keys")
            table[name] = _as_in_a_file(text.strip())
        return self.from_dict(values)

    def override(self, **values: Any) -> TrainConfig:
        """A copy with the values that are not None changed."""
        return replace(self, **{key: value for key, value in values.items() if value is not None})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for logs and cards."""
        return asdict(self)


def _as_in_a_file(text: str) -> Any:
    """The value that a TOML file would hold; the text itself where that is no value."""
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return found["value"] if found.keys() == {"value"} else text


def recipe_names() -> list[str]:
    """Recipes that come with the package."""
    folder = resources.files(__package__) / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))
