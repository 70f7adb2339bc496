"""A router for any slimmed network that has frames."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .nn import RunningLevel
from .router import Router, RouterConfig
from .width import Budget, WidthSet


class FrameRouter(nn.Module):
    """Choose a UF for every frame of a noisy signal, for `slimse.at` around the call of a slimmed network.

    It is the router of `slimse.SlimModel` on the signal divided by its running level. It knows no network:
    a frame is ``hop`` samples, all of which it has when it chooses.

    Args:
        hop: samples per frame, a multiple of ``config.stride``.
        sample_rate: Hz.
        ufs: what to choose from; those that the network was made for.
        config: sizes of the router.

    Raises:
        ValueError: for a ``hop`` or ``ufs`` that do not fit.

    >>> router = FrameRouter(hop=256, sample_rate=16_000)
    >>> router.route(torch.randn(2, 1, 4_000), budget=0.25).shape
    torch.Size([2, 16])
    """

    def __init__(
        self,
        hop: int,
        sample_rate: int,
        ufs: Sequence[float] = (0.125, 0.25, 0.5, 1.0),
        config: RouterConfig | None = None,
    ) -> None:
        super().__init__()
        config = RouterConfig() if config is None else config
        if hop < 1 or hop % config.stride:
            raise ValueError(f"hop = {hop}: expected a multiple of the router's stride, {config.stride}")
        if len(ufs) < 2:
            raise ValueError(f"ufs = {tuple(ufs)}: expected two or more to choose from")
        self.ufs, self.hop = WidthSet(ufs), hop
        self.level = RunningLevel(sample_rate)
        self.router = Router(config, self.ufs, hop, sample_rate)

    def forward(self, noisy: Tensor, budget: Budget) -> Tensor:
        """Logits of every frame, to train the router by.

        Args:
            noisy: ``[B, 1, T]``, at the sample rate of the router.
            budget: target of the average UF, a number or ``[B]``, from the smallest UF to 1.

        Returns:
            ``[B, ceil(T / hop), len(ufs)]``.

        Raises:
            ValueError: for another shape of ``noisy``, or a budget out of range.
        """
        if noisy.ndim != 3 or noisy.shape[1] != 1:
            raise ValueError(f"noisy has shape {tuple(noisy.shape)}: expected [B, 1, T]")
        samples = noisy[:, 0]
        budgets = self.ufs.request(None, budget, len(samples)).budget
        assert budgets is not None, "a request with a budget keeps it"
        levelled, _ = self.level(samples, self.level.initial_state(samples))
        padded = nn.functional.pad(levelled, (0, -samples.shape[1] % self.hop))
        logits: Tensor = self.router(padded, budgets.to(padded), self.router.initial_state(len(samples)))[0]
        return logits

    @torch.no_grad()
    def route(
        self, noisy: Tensor, budget: Budget, *, stride: int | None = None, positions: int | None = None
    ) -> Tensor:
        """The UFs of a signal, one per frame or one per position of the network's layers.

        Args:
            noisy: ``[B, 1, T]``.
            budget: as in `forward`.
            stride: samples per position of the layers that are cut; it divides ``hop``. By default ``hop``.
            positions: how many positions these layers have; those after the last frame belong to it. By default as many
                as the frames make.

        Returns:
            ``[B, positions]``.

        Raises:
            ValueError: as `forward`, and for a ``stride`` that does not divide ``hop``.
        """
        stride = self.hop if stride is None else stride
        if stride < 1 or self.hop % stride:
            raise ValueError(f"stride = {stride}: expected a divisor of hop = {self.hop}")
        ufs = self.ufs.at(self(noisy, budget).argmax(-1))
        per_frame = self.hop // stride
        count = ufs.shape[1] * per_frame if positions is None else positions
        frame = (torch.arange(count, device=ufs.device) // per_frame).clamp(max=ufs.shape[1] - 1)
        return ufs[:, frame]
