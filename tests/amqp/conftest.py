"""The bench, the proxy that disturbs what is set up on it, and confirms that are kept back."""

from support.fixtures import bench, held, proxied, proxy

__all__ = ['bench', 'held', 'proxied', 'proxy']
