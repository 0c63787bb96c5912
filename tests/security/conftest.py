"""The bench of the tests of security."""

from support.fixtures import bench, proxied, proxy

__all__ = ['bench', 'proxied', 'proxy']
