"""The command line ``fldd-lightning``."""

from .main import main

__all__ = ["main"]
