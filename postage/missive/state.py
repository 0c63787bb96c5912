"""What hooks and handlers keep for each other."""

from postage.messaging.hooks import State

__all__ = ['State']
