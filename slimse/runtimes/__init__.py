"""What runs the frames of a model: its layers, compiled code, or a recorded graph."""

from .base import RUNTIMES, Runtime, Session, Slots, choose, register

__all__ = ["RUNTIMES", "Runtime", "Session", "Slots", "choose", "register"]
