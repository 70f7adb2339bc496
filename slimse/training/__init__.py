"""Training of slimmable models: dynamic mixing, losses, and the Lightning module. Needs ``slimse[train]``.

`sandwich` alone needs no more than PyTorch.
"""

from .sandwich import sandwich

__all__ = ["sandwich"]
