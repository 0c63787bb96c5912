"""The bench, and the proxy that disturbs what is set up on it."""

from support.fixtures import bench, proxied, proxy

__all__ = ['bench', 'proxied', 'proxy']
