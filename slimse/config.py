"""Configuration of a `SlimModel`, and the named presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from .checks import typed
from .networks import NetworkConfig, SlimDemucsConfig
from .networks.base import network_config, network_dict
from .router import RouterConfig

LEVELS = ("running", "signal", "none")
"""What a model may divide its input by, see `ModelConfig`."""


@dataclass(frozen=True)
class ModelConfig:
    """What a `SlimModel` is made of.

    Args:
        network: configuration of a registered network (`slimse.networks.NETWORKS`).
        router: what chooses the UF of every frame, or None; needs a causal network with two UFs or more, and another
            ``level`` than ``"signal"``.
        level: what the input is divided by and the output multiplied with. ``"running"``: the level so far, sample by
            sample (`RunningLevel`). ``"signal"``: the standard deviation of the whole signal, as the original DEMUCS
            has it, which is not causal. ``"none"``: nothing.
        floor: added to the deviation of the whole signal before the division.

    Raises:
        ValueError: for values that do not fit together; the message names the value and what was expected.
    """

    network: NetworkConfig = field(default_factory=SlimDemucsConfig)
    router: RouterConfig | None = None
    level: str = "running"
    floor: float = 1e-3

    def __post_init__(self) -> None:
        """Check that the values fit together."""
        if not isinstance(self.network, NetworkConfig):
            raise ValueError(f"network is a {type(self.network).__name__}: expected a configuration of a network")
        if self.level not in LEVELS:
            raise ValueError(f"level = {self.level!r}: expected one of {LEVELS}")
        if not self.floor > 0:
            raise ValueError(f"floor = {self.floor!r}: expected a positive number")
        network = self.network
        if self.router is not None and (not network.causal or self.level == "signal" or len(network.ufs) < 2):
            raise ValueError(
                "a router needs a causal model with two UFs or more whose level is not that of the whole signal; "
                f"got causal = {network.causal}, level = {self.level!r}, ufs = {tuple(network.ufs)}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON, with the name of the network; `from_dict` is the inverse."""
        router = None if self.router is None else dict(vars(self.router))
        return {"network": network_dict(self.network), "router": router, "level": self.level, "floor": self.floor}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from plain values; an unknown key or a value of another type raises a `ValueError` that names it."""
        if not isinstance(values, Mapping) or "network" not in values:
            raise ValueError("a model configuration without network: expected a table of its type and sizes")
        rest = {key: value for key, value in values.items() if key != "network"}
        return cls(network=network_config(values["network"]), **typed(cls, rest, "a model configuration"))


def _original(hidden: int, *, causal: bool = True) -> ModelConfig:
    """The original DEMUCS denoiser (arXiv 2006.12847) of ``hidden`` channels."""
    return ModelConfig(SlimDemucsConfig(hidden=hidden, rnn="lstm", rnn_layers=2, causal=causal), level="signal")


PRESETS: dict[str, ModelConfig] = {
    "paper": ModelConfig(),
    "dynamic": ModelConfig(router=RouterConfig()),
    "small": ModelConfig(SlimDemucsConfig(hidden=8, depth=3, resample=2, groups=2)),
    "dns48": _original(48),
    "dns64": _original(64),
    "dns48-bidirectional": _original(48, causal=False),
    "dns64-bidirectional": _original(64, causal=False),
}
"""``paper``: the backbone of arXiv 2507.04879, ``dynamic``: with a router. ``small``: for tests. The others: the
original DEMUCS denoiser."""
