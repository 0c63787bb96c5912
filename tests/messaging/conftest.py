"""The bench on which the tests of the messaging layer are set up, once for each broker."""

from support.fixtures import bench

__all__ = ['bench']
