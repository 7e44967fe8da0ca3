"""Inference servers: a bundle's graphs run on a server of the KServe v2 protocol, all else stays in this process."""

from flawscope.runtime.client.connecting import connect

__all__ = ["connect"]
