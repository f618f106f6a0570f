"""The browser: all trajectories of a run in one HTML file, which needs no network."""

from kr1_utils.browse.page import link_html, render, write_page
from kr1_utils.browse.run import Row, read_run

__all__ = ["Row", "link_html", "read_run", "render", "write_page"]
