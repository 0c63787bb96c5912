"""The bench, for what takes a broker."""

from support.fixtures import bench

__all__ = ['bench']
