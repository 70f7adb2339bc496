"""Entry point of ``torch.hub``: ``torch.hub.load("slimse/slimse", "slimse")``, or ``source="local"`` for a clone."""

from typing import Any

dependencies = ["torch", "numpy", "einops", "safetensors"]


def slimse(weights: str = "dynamic-v1", **options: Any) -> Any:
    """The bundled weights, or others: a file, a folder, or ``OWNER/NAME`` on the Hugging Face hub.

    Args:
        weights: see `slimse.load`.
        options: of `slimse.load`.

    Returns:
        A `slimse.SlimModel`: ``model(noisy, uf=0.25)`` enhances ``[B, 1, T]`` at 16 kHz.
    """
    from slimse import load

    return load(weights, **options)
