"""What the package asks of a network, and the registry of those that it knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, Self, TypeVar

from torch import Tensor, nn

from ..checks import typed
from ..width import Schedule, WidthSet


@dataclass(frozen=True)
class FrameGeometry:
    """How samples and frames of a causal network relate: four integers, in samples of its input.

    Args:
        hop: samples per frame.
        first: samples that a stream needs before its first frame can run.
        receptive: samples that one frame spans; at most ``first``, which also counts look-ahead.
        delay: samples by which the output of a stream lies behind: after ``n`` frames ``n * hop - delay`` are out.

    Raises:
        ValueError: for numbers that do not fit together.
    """

    hop: int
    first: int
    receptive: int
    delay: int

    def __post_init__(self) -> None:
        """Check that the numbers fit together."""
        if self.hop < 1 or not self.hop <= self.receptive <= self.first or self.delay < 0:
            raise ValueError(f"{self}: expected 1 <= hop <= receptive <= first, and delay of 0 or more")

    def span(self, frames: int) -> int:
        """Samples that ``frames`` frames of a whole signal span."""
        return self.receptive + (frames - 1) * self.hop

    def frames(self, samples: int) -> int:
        """Frames of a whole signal of ``samples`` samples: the columns of a ``[B, frames]`` tensor of UFs."""
        return max(1, 1 - (self.receptive - samples) // self.hop)

    def frames_done(self, samples: int) -> int:
        """Frames that a stream can run once ``samples`` samples have come in."""
        return max(0, 1 + (samples - self.first) // self.hop)

    def frames_left(self, done: int, samples: int) -> int:
        """Frames to run when a signal ends ``samples`` samples behind ``done``, which frames have taken; may be 0."""
        total = done + samples
        return self.frames(total) - self.frames_done(done) if total else 0

    def early(self, samples: int) -> int:
        """Samples that the next frame takes besides a hop, ``samples`` after the start: only the first takes more."""
        return 0 if samples else self.first - self.hop

    def emitted(self, frames: int) -> int:
        """Output samples that are ready once ``frames`` frames have run."""
        return max(frames * self.hop - self.delay, 0)

    @property
    def silent(self) -> int:
        """Frames of a stream that give no output yet."""
        return self.delay // self.hop

    @property
    def latency(self) -> int:
        """Algorithmic latency in samples: output ``n`` is ready once input ``n + latency`` has come in.

        That is the worst case over a frame, buffering of the frame included; most outputs come earlier.
        """
        # The first output waits for the first frames; from then on, each frame's first output waits the longest.
        start = self.first + self.silent * self.hop - 1
        return max(start, start + self.hop - self.emitted(self.silent + 1))


class NetworkConfig:
    """Base of the configurations of networks, which are frozen dataclasses of plain values."""

    ufs: WidthSet
    """Utilization factors that the network is made for, rising, the last 1.0."""
    sample_rate: int
    """Of input and output, Hz."""
    causal: bool = True
    """False for a network that needs the whole signal."""

    def __post_init__(self) -> None:
        """Accept UFs as any sequence of numbers. Configurations with checks of their own call this first."""
        if not isinstance(self.ufs, WidthSet):
            object.__setattr__(self, "ufs", WidthSet(self.ufs))

    def fewest_weights(self) -> int:
        """Weights that the network has at least; a file that holds fewer is refused before it takes memory."""
        return 0

    @classmethod
    def limits(cls, tensors: int, weights: int) -> dict[str, int]:
        """The largest values of fields that a file of so many tensors and weights may ask for."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; `from_dict` is the inverse."""
        values: dict[str, Any] = asdict(self)  # type: ignore[call-overload]
        return values | ({"ufs": list(self.ufs)} if "ufs" in values else {})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from plain values; an unknown key or a value of another type raises a `ValueError` that names it."""
        return cls(**typed(cls, values, "a configuration of a network"))


class CausalNetwork(nn.Module):
    """Base of networks: what streams, router, training, evaluation, profile and files need, and no more.

    A network maps samples at its own level to samples; `slimse.SlimModel` adds level, router and budgets. Register it
    under a name with `register`, and everything runs it.

    Args:
        config: of the class that it is registered with.
        backend: of the layers, see `slimse.ops`.
        precision: of the layers, see `slimse.ops`.

    Subclasses set `geometry` and define `initial_state` and `step`. The state is any nesting of tuples, lists and
    dicts of tensors that have the streams on axis 0. Its lengths along time may change up to the first output, and
    are constant from then on.

    Modules that multiply may define ``count(args, output)``, called with those of a call that was just made. It returns
    multiply-accumulates and weight bytes read, and `slimse.profiling.profile` adds them up.
    """

    geometry: FrameGeometry

    def __init__(self, config: Any, *, backend: str = "auto", precision: str = "ieee") -> None:
        super().__init__()
        self.config, self.backend, self.precision = config, backend, precision

    @property
    def ufs(self) -> WidthSet:
        """The UFs that it is made for."""
        ufs: WidthSet = self.config.ufs
        return ufs

    def initial_state(self, batch: int) -> Any:
        """What ``batch`` streams remember before their first sample."""
        raise NotImplementedError

    def whole_state(self, batch: int) -> Any:
        """What ``batch`` whole signals start from, whose one `step` is ``final``: as `initial_state`.

        A network may override it to leave out zeros that one call does not need.
        """
        return self.initial_state(batch)

    def step(self, x: Tensor, state: Any, schedule: Schedule, *, final: bool) -> tuple[Tensor, Any]:
        """Run the next frames of some streams.

        Args:
            x: ``[B, n]``: ``geometry.first`` samples in a stream's first call, else ``hop``; either plus ``hop`` per
                further frame. In the last call what is left, followed by silence up to `FrameGeometry.span`; its
                length may be 0.
            state: from `initial_state`, `whole_state` or the call before. It must not be changed.
            schedule: the width of every frame; ``schedule.width(channels, frame)`` gives that of positions.
            final: whether the signal ends here: outputs that wait for later samples are returned too.

        Returns:
            ``[B, m]``, all outputs that are ready (in the last call, maybe more than there were inputs), and the new
            state.
        """
        raise NotImplementedError

    def extract(self, uf: float) -> CausalNetwork:
        """One width as a network of its own.

        Raises:
            ValueError: for a UF outside the set, or a network that cannot do this.
        """
        raise ValueError(f"a {type(self).__name__} has no extract: expected a network that defines it")


class NetworkType(NamedTuple):
    """A registered network."""

    config: type[NetworkConfig]
    network: type[CausalNetwork]


NETWORKS: dict[str, NetworkType] = {}
"""Networks by the name that checkpoints and recipes give them; see `register`."""

Class = TypeVar("Class", bound=type[CausalNetwork])


def register(name: str, config: type[NetworkConfig]) -> Callable[[Class], Class]:
    """Make a network known by ``name``, built from configurations of the class ``config``.

    Raises:
        ValueError: for a name that another network has.
    """

    def note(network: Class) -> Class:
        if name in NETWORKS:
            raise ValueError(f"network {name!r} is registered already: expected another name than {list(NETWORKS)}")
        NETWORKS[name] = NetworkType(config, network)
        return network

    return note


def build_network(config: NetworkConfig, *, backend: str = "auto", precision: str = "ieee") -> CausalNetwork:
    """The network of a configuration, with fresh weights."""
    return NETWORKS[network_name(config)].network(config, backend=backend, precision=precision)


def network_name(config: NetworkConfig) -> str:
    """The name under which the network of a configuration is registered.

    Raises:
        ValueError: for a configuration of no registered network.
    """
    for name, known in NETWORKS.items():
        if type(config) is known.config:
            return name
    raise ValueError(f"config is a {type(config).__name__}: expected that of a registered network, {list(NETWORKS)}")


def config_class(values: object) -> type[NetworkConfig]:
    """The class of the configuration whose plain values name it under ``type``.

    Raises:
        ValueError: for a name that is not registered.
    """
    name = values.get("type") if isinstance(values, Mapping) else None
    if not isinstance(name, str) or name not in NETWORKS:
        raise ValueError(f"network type = {name!r}: expected one of {list(NETWORKS)}")
    return NETWORKS[name].config


def network_config(values: Mapping[str, Any]) -> NetworkConfig:
    """The configuration of plain values, as `network_dict` gives them; raises a `ValueError` for bad ones."""
    return config_class(values).from_dict({key: value for key, value in values.items() if key != "type"})


def network_dict(config: NetworkConfig) -> dict[str, Any]:
    """Plain values, for JSON, with the name of the network under ``type``."""
    return {"type": network_name(config)} | config.to_dict()


def with_ufs(config: NetworkConfig, ufs: WidthSet) -> NetworkConfig:
    """The same network with other UFs."""
    return replace(config, ufs=ufs)  # type: ignore[type-var]
