"""The selective scan, with one entry point. Back ends are files beside this one."""

from .chunked import selective_scan
from .reference import recurrence

__all__ = ["recurrence", "selective_scan"]
