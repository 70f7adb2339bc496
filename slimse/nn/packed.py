"""Modules whose parameters lie the way the kernels read them, and whose `state_dict` lies the way PyTorch's do."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class PackedModule(nn.Module):
    """Base of layers that store each weight with its slimmed axis first.

    Subclasses translate between the two layouts with `unpack` and `pack`. `state_dict` gives views in PyTorch's
    layout that share memory with the parameters; loading packs once.
    """

    def unpack(self, packed: dict[str, Tensor]) -> dict[str, Tensor]:
        """Own parameters by attribute name to tensors in PyTorch's names and layout (views where possible)."""
        raise TypeError(f"{type(self).__name__} must define unpack")

    def pack(self, public: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `unpack`."""
        raise TypeError(f"{type(self).__name__} must define pack")

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        own = {name: p if keep_vars else p.detach() for name, p in self.named_parameters(recurse=False)}
        for name, tensor in self.unpack(own).items():
            destination[prefix + name] = tensor

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        expected = self.unpack({name: p.detach() for name, p in self.named_parameters(recurse=False)})
        given = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        if strict:
            unexpected_keys.extend(prefix + name for name in given if name not in expected)
        missing = [name for name in expected if name not in given]
        missing_keys.extend(prefix + name for name in missing)
        wrong = [name for name in expected if name in given and given[name].shape != expected[name].shape]
        error_msgs.extend(
            f"{prefix}{name} has shape {tuple(given[name].shape)}, expected {tuple(expected[name].shape)}"
            for name in wrong
        )
        if missing or wrong:
            return
        own = self.pack({name: given[name] for name in expected})
        packed = {prefix + name: tensor for name, tensor in own.items()}
        super()._load_from_state_dict(packed, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
