"""Networks of any code as causal networks: slimmed, and streamed by what their code pads and carries along time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..nn import SlimLayer
from ..nn.context import at
from ..slimmify import slimmify
from ..slimmify.check import difference
from ..width import Schedule, WidthSet
from .base import CausalNetwork, FrameGeometry, NetworkConfig
from .memory import Chunk, find_slots
from .state import tree_map

_HOPS = (1, 2, 1, 4)
"""Chunks that a new network is tried on."""


@dataclass(frozen=True)
class SlimmedConfig(NetworkConfig):
    """Base of the configurations of `SlimmedNetwork`; derive from it and add the sizes of your network.

    Args:
        ufs: utilization factors.
        sample_rate: of input and output, Hz.
        hop: samples per frame, a multiple of the network's stride.
        delay: samples by which the output of the network lags behind its input.

    Raises:
        ValueError: for a ``hop`` below 1, or a ``delay`` below 0.
    """

    ufs: WidthSet = field(default_factory=lambda: WidthSet((0.125, 0.25, 0.5, 1.0)))
    sample_rate: int = 16_000
    hop: int = 256
    delay: int = 0

    def __post_init__(self) -> None:
        """Check the frames."""
        super().__post_init__()
        if self.hop < 1 or self.delay < 0:
            raise ValueError(f"hop = {self.hop}, delay = {self.delay}: expected 1 or more, and 0 or more")


class SlimmedNetwork(CausalNetwork):
    """A causal network of your own code, slimmed by `slimse.slimmify`, for streams, router, files and profile.

    Derive from it, define `build`, and register it with a configuration derived from `SlimmedConfig`. The code that
    `build` returns runs on whole signals and needs no change: all that it may know of the past is zeros that it pads on
    the left of the time axis (`torch.nn.functional.pad`, `torch.nn.ConstantPad1d` and the like), and the state of
    recurrent layers of one direction. In a stream, what came before takes the place of these zeros.

    When it is made, it runs at every UF in chunks and at once, and is refused if the two differ.

    Args:
        config: of the class that it is registered with.
        backend: of the layers, see `slimse.ops`.
        precision: of the layers, see `slimse.ops`.

    Raises:
        ValueError: for a network that cannot be slimmed (see `slimse.slimmify`), or that sees more of a signal than a
            stream has; the message names the layer.
    """

    cuts: ClassVar[Mapping[str, str] | None] = None
    """As of `slimse.slimmify`."""

    inner: nn.Module
    """What `build` returned, slimmed."""

    def __init__(self, config: SlimmedConfig, *, backend: str = "auto", precision: str = "ieee") -> None:
        super().__init__(config, backend=backend, precision=precision)
        hop, delay = config.hop, config.delay
        self.geometry = FrameGeometry(hop=hop, first=hop, receptive=hop, delay=delay)
        example = torch.randn(2, 1, sum(_HOPS) * hop, generator=torch.Generator().manual_seed(0))
        self.inner = slimmify(
            self.build(), example[:1], cuts=self.cuts, ufs=tuple(config.ufs), backend=backend, precision=precision
        )
        modes = {module: module.training for module in self.inner.modules()}
        self.inner.eval()
        try:
            with torch.no_grad():
                self._slots = find_slots(self.inner, example[:1], config.ufs)
                self._check(example)
        finally:
            for module, mode in modes.items():
                module.training = mode

    def build(self) -> nn.Module:
        """The network: ``[B, 1, T]`` to the same, for any ``T`` that is a multiple of the hop; sizes in ``config``."""
        raise NotImplementedError

    def initial_state(self, batch: int) -> Any:
        """Silence, and how many samples are left to drop because the output lags."""
        like = next(self.parameters())
        return self.config.delay, [like.new_zeros(batch, *slot.shape) for slot in self._slots]

    def step(self, x: Tensor, state: Any, schedule: Schedule, *, final: bool) -> tuple[Tensor, Any]:
        """As of `CausalNetwork`. Streams that run at one UF run together."""
        if schedule.gates is not None:
            raise ValueError(
                f"uf has gates over the UFs, which a {type(self).__name__} does not run at: expected UFs; "
                "a router of its own learns as docs/your-network.md shows"
            )
        hop, (left, parts) = self.config.hop, state
        if final:
            x = nn.functional.pad(x, (0, -(-self.config.delay // hop) * hop))
        outputs = [x[:, :0]]
        for start, end, ufs in _segments(schedule, x.shape[1] // hop):
            out, parts = self._run(x[:, start * hop : end * hop], parts, ufs)
            outputs.append(out)
        out = torch.cat(outputs, 1)
        return out[:, left:], (max(left - out.shape[1], 0), parts)

    def _run(self, x: Tensor, parts: list[Tensor], ufs: Sequence[float]) -> tuple[Tensor, list[Tensor]]:
        """Some frames, during which every stream keeps its UF."""
        if len(set(ufs)) == 1:
            with at(ufs[0]), Chunk(self._slots, parts, ufs[0]) as chunk:
                out = self.inner(x.unsqueeze(1))[:, 0]
            return out, chunk.after()
        out, after = torch.empty_like(x), [part.clone() for part in parts]
        for uf in sorted(set(ufs)):
            rows = torch.tensor([row for row, other in enumerate(ufs) if other == uf], device=x.device)
            some, new = self._run(x[rows], tree_map(lambda part, rows=rows: part[rows], parts), [uf])
            out = out.index_copy(0, rows, some)
            after = [whole.index_copy(0, rows, part) for whole, part in zip(after, new, strict=True)]
        return out, after

    def extract(self, uf: float) -> CausalNetwork:
        """Refused: no configuration describes one width. `slimse.extract` gives it as plain layers."""
        raise ValueError(
            f"one width of a {type(self).__name__} has no configuration: "
            "expected slimse.extract(model.network.inner, uf), a network of plain layers"
        )

    def _check(self, example: Tensor) -> None:
        """Run in chunks what was run at once."""
        for uf in self.ufs:
            with at(uf):
                whole = self.inner(example)
            if not isinstance(whole, Tensor) or whole.shape != example.shape:
                found = tuple(whole.shape) if isinstance(whole, Tensor) else type(whole).__name__
                raise ValueError(f"the network gives {found} for {tuple(example.shape)}: expected the same shape")
            if wrong := difference([self._chunked(example, uf)], [whole], scale=10):
                raise ValueError(
                    f"{self._suspect(example[:1], uf)} sees more of a signal than a stream has ({wrong} in chunks, at "
                    f"UF {uf:g}): expected memory in zeros padded on the left and in recurrent layers of one direction"
                )

    def _chunked(self, example: Tensor, uf: float) -> Tensor:
        """Every other chunk stream by stream: what one remembers must not depend on others."""
        outputs, (_, parts) = [], self.initial_state(len(example))
        for number, chunk in enumerate(example[:, 0].split([hops * self.config.hop for hops in _HOPS], 1)):
            rows = [slice(row, row + 1) for row in range(len(example))] if number % 2 else [slice(None)]
            runs = [self._run(chunk[row], [part[row] for part in parts], [uf]) for row in rows]
            outputs.append(torch.cat([out for out, _ in runs]))
            parts = [torch.cat(same) for same in zip(*(new for _, new in runs), strict=True)]
        return torch.cat(outputs, 1).unsqueeze(1)

    def _suspect(self, example: Tensor, uf: float) -> str:
        """The first layer that gives something else in chunks than at once."""
        seen: dict[str, list[Tensor]] = {}

        def note(name: str) -> Any:
            def hook(module: nn.Module, given: Any, out: Any) -> None:
                first = out[0] if isinstance(out, tuple) else out
                if isinstance(first, Tensor):
                    seen.setdefault(name, []).append(first)

            return hook

        pads = ("Pad1d", "Pad2d", "Pad3d")
        layers = {
            name: layer
            for name, layer in self.inner.named_modules()
            if not type(layer).__name__.endswith(pads)
            and (isinstance(layer, SlimLayer) or not next(layer.children(), None))
        }
        handles = [layer.register_forward_hook(note(name)) for name, layer in layers.items()]
        try:
            with at(uf):
                self.inner(example)
            whole, seen = seen, {}
            self._chunked(example, uf)
        finally:
            for handle in handles:
                handle.remove()
        for name, (first, *_) in whole.items():
            if all(difference([joined], [first], scale=10) for joined in _joined(seen.get(name, []))):
                return f"{name}, a {type(layers[name]).__name__.removeprefix('Slim')},"
        return "the code between its layers"


def _joined(chunks: list[Tensor]) -> Iterator[Tensor]:
    """Chunks one after the other, along whatever axis that can be."""
    for axis in range(chunks[0].ndim if chunks else 0):
        if len({(*chunk.shape[:axis], *chunk.shape[axis + 1 :]) for chunk in chunks}) == 1:
            yield torch.cat(chunks, axis)


def _segments(schedule: Schedule, frames: int) -> Iterator[tuple[int, int, list[float]]]:
    """First frame, end, and UFs of runs of frames during which no stream changes its UF."""
    if schedule.uf is not None or not frames:
        if frames:
            yield 0, frames, [schedule.uf or 1.0]
        return
    assert schedule.choice is not None
    columns = schedule.choice.T.tolist()
    # Frames after the last one have its UF: they bring out what it has given.
    columns += [columns[-1]] * (frames - len(columns))
    start = 0
    for frame in range(1, frames + 1):
        if frame == frames or columns[frame] != columns[start]:
            yield start, frame, [schedule.widths[index] for index in columns[start]]
            start = frame
