"""Networks that the package runs: what it asks of one, and the registry."""

from .base import NETWORKS, CausalNetwork, FrameGeometry, NetworkConfig, register
from .demucs import SlimDemucs, SlimDemucsConfig
from .slimmed import SlimmedConfig, SlimmedNetwork

__all__ = [
    "NETWORKS",
    "CausalNetwork",
    "FrameGeometry",
    "NetworkConfig",
    "SlimDemucs",
    "SlimDemucsConfig",
    "SlimmedConfig",
    "SlimmedNetwork",
    "register",
]
