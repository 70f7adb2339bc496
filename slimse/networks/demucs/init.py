"""Initialization of a `SlimDemucs`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .network import SlimDemucs

_OPEN = 4.0
"""Initial bias of a gate that lets its value pass: its sigmoid is 0.98."""


@torch.no_grad()
def initialise(model: SlimDemucs) -> None:
    """Set scales and biases, and let the network begin as a copy of its input where it can.

    - The deviation of every convolution is pulled towards 0.1 (arXiv 2006.12847, section 3.2): without normalisation
      layers, PyTorch's default makes the deep levels start out nearly silent or too loud.
    - Biases start at zero (this project's choice), or they would drown quiet recordings.
    - See `_begin_as_identity` (this project's choice).
    """
    for block in [*model.encoder, *model.decoder]:
        for kind in ("conv", "glu"):
            weight = block.get_parameter(f"{kind}_weight")
            weight.div_((weight.std() / 0.1).sqrt())
            block.get_parameter(f"{kind}_bias").zero_()
    config = model.config
    narrowest = config.ufs.channels(config.ufs[0], config.hidden)
    if narrowest >= 4 and config.stride % 2 == 0 and config.kernel_size >= 2 * config.stride and config.depth > 1:
        _begin_as_identity(model)


def _begin_as_identity(model: SlimDemucs) -> None:
    """Let four hidden units of the outermost blocks pass the signal on, so that every width starts near the identity.

    From random weights, hundreds of steps go into learning to reproduce the input through ReLUs and gates before any
    noise is removed. Two samples of every stride, half a stride apart, go through two ReLUs of opposite sign, an open
    gate, the skip, and another open gate; the last convolution interpolates between them, and the down-sampling
    filters take away what is too high. The units are among those of the narrowest width, and train like all others.
    """
    first, last, inner = model.encoder[0], model.decoder[0], model.decoder[1]
    channels, half = first.channels, first.stride // 2
    gain = 1 + torch.exp(torch.tensor(-_OPEN))
    taps = first.kernel_size
    triangle = 1 - torch.linspace(-1, 1, 2 * half + 1).abs()
    first.conv_weight[:4] = 0
    # Every other input of the two channels that carry the signal starts at zero.
    first.glu_weight[:, [0, 1, channels, channels + 1]] = 0
    first.glu_bias[channels : channels + 2] = _OPEN
    inner.conv_weight.view(inner.channels, -1, inner.outputs)[:, :, :2] = 0
    last.glu_weight[:2] = 0
    last.glu_bias[:2, 1] = _OPEN
    # The other units of the last block start out quiet: what they say is noise until they have learnt.
    last.conv_weight.mul_(0.1)
    last.conv_weight[:2] = 0
    for unit in range(2):
        position = half * (unit + 1)
        first.conv_weight[2 * unit, position] = 1
        first.conv_weight[2 * unit + 1, position] = -1
        first.glu_weight[2 * unit, unit] = gain
        first.glu_weight[2 * unit + 1, unit] = -gain
        last.glu_weight[unit, 0, unit] = gain
        last.conv_weight[unit, max(position - half, 0) : min(position + half + 1, taps)] = triangle
