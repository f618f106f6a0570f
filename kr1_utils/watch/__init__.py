"""Watching a run: its six panels on a page that renews itself while it trains."""

from kr1_utils.watch.server import WatchServer

__all__ = ["WatchServer"]
