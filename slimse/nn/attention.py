"""Multi-head attention that stands in for that of `torch.nn` and runs with a prefix of its heads."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..width import UF
from .axis import Axis
from .layers import SlimLayer, bare


class SlimMultiheadAttention(SlimLayer, nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` with a UF: the active heads are a prefix. Input and output stay full.

    Args:
        *args: as of `torch.nn.MultiheadAttention`. ``add_bias_kv`` and ``add_zero_attn`` must be False.
        **kwargs: as of `torch.nn.MultiheadAttention`.

    Shape:
        As of `torch.nn.MultiheadAttention` at every UF; with a prefix of the heads in weights that are not averaged.

    Raises:
        ValueError: for ``add_bias_kv`` or ``add_zero_attn``.
    """

    heads: Axis
    """The ``E`` features of all heads, cut at heads."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        nn.MultiheadAttention.__init__(self, *args, **kwargs)
        if self.bias_k is not None or self.add_zero_attn:
            raise ValueError("add_bias_kv or add_zero_attn is True: expected False")
        self.inputs = self.outputs = Axis.of(self.embed_dim, cut=False)
        self.heads = Axis.of(self.embed_dim, blocks=self.num_heads)

    def _projections(self, uf: float) -> list[tuple[Tensor, Tensor | None]]:
        """Weights and biases of query, key and value for the active heads."""
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        narrow = self.heads.narrow
        return [
            (narrow(weight, 0, uf), None if bias is None else narrow(bias, 0, uf))
            for weight, bias in zip(weights, biases, strict=True)
        ]

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        *,
        uf: UF | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Run at ``uf``: a number in (0, 1], or ``[B]``; the rest as in `torch.nn.MultiheadAttention`."""
        uf = self._resolve(uf)
        masks: dict[str, Any] = {"key_padding_mask": key_padding_mask, "attn_mask": attn_mask, "is_causal": is_causal}
        shown: dict[str, Any] = {"need_weights": need_weights, "average_attn_weights": average_attn_weights}
        if not self.heads.is_cut:
            uf = 1.0
        if self.heads.size == self.embed_dim and self._is_whole(uf):
            return nn.MultiheadAttention.forward(self, query, key, value, **masks, **shown)
        single = query.ndim == 2
        batched = [
            x.unsqueeze(0) if single else x if self.batch_first else x.transpose(0, 1) for x in (query, key, value)
        ]
        items = batched[0].shape[0]
        if isinstance(uf, Tensor) and uf.shape != (items,):
            raise ValueError(
                f"uf has shape {tuple(uf.shape)}: expected a number or [{items}]; a head sees all positions"
            )
        width = 1.0 if isinstance(uf, Tensor) else uf
        size = self.head_dim
        q, k, v = (
            F.linear(x, weight, bias).unflatten(-1, (-1, size)).transpose(1, 2)
            for x, (weight, bias) in zip(batched, self._projections(width), strict=True)
        )
        bias = self._attention_bias(key_padding_mask, attn_mask, items, q)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * size**-0.5) @ k.mT
            weights = torch.softmax(scores if bias is None else scores + bias, -1)
            weights = F.dropout(weights, dropout)
            out = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            out = F.scaled_dot_product_attention(q, k, v, bias, dropout)
        out = out.transpose(1, 2).flatten(2)
        if isinstance(uf, Tensor):
            if need_weights:
                raise ValueError("need_weights = True with a tensor of UFs: expected False, as heads differ by item")
            out = self.heads.silence(out, -1, uf)
        out = F.linear(out, self.heads.narrow(self.out_proj.weight, 1, width), self.out_proj.bias)
        if single:
            return out[0], None if weights is None else weights[0]
        return out if self.batch_first else out.transpose(0, 1), weights

    def _attention_bias(self, padding: Tensor | None, mask: Tensor | None, items: int, q: Tensor) -> Tensor | None:
        """What is added to the scores: both masks as numbers ``[B or 1, heads or 1, L or 1, S]``."""
        bias = None
        if mask is not None:
            bias = _as_numbers(mask, q)
            if bias.ndim == 3:
                bias = bias.unflatten(0, (items, self.num_heads))[:, : q.shape[1]]
        if padding is not None:
            padding = _as_numbers(padding if padding.ndim == 2 else padding.unsqueeze(0), q)[:, None, None]
            bias = padding if bias is None else bias + padding
        return bias

    def extract(self, uf: float) -> nn.Module:
        """One width: the active heads alone, as a layer whose heads have the size that they had."""
        narrow = self.heads.narrow
        replaced: dict[str, Any] = {"num_heads": self.heads.count(uf) // self.head_dim}
        projections = self._projections(uf)
        for name, (weight, _) in zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), projections, strict=True):
            if self.in_proj_weight is None:
                replaced[name] = weight
        if self.in_proj_weight is not None:
            replaced["in_proj_weight"] = torch.cat([weight for weight, _ in projections])
        if self.in_proj_bias is not None:
            replaced["in_proj_bias"] = torch.cat([bias for _, bias in projections if bias is not None])
        small = bare(SlimMultiheadAttention, self, **replaced)
        small.inputs = small.outputs = self.inputs
        small.heads = Axis.of(self.heads.count(uf), cut=False)
        if small.heads.size < self.embed_dim:
            # Keeps the fused path of PyTorch's transformer layers away: it takes all heads to be there.
            small._qkv_same_embed_dim = False
        small.out_proj = bare(type(self.out_proj), self.out_proj, weight=narrow(self.out_proj.weight, 1, uf))
        return small


def _as_numbers(mask: Tensor, like: Tensor) -> Tensor:
    """A mask as numbers to add: where a boolean one is True, minus infinity."""
    if mask.dtype != torch.bool:
        return mask.to(like)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -torch.inf)
