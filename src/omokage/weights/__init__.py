"""Which models exist, which of them are installed, and the one place that uses the network."""

from omokage.weights.store import find, installed

__all__ = ["find", "installed"]
