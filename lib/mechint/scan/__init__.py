"""The selective scan, with one entry point. Back ends are files beside this one."""

from .chunked import read_out, selective_scan
from .reference import recurrence

__all__ = ["read_out", "recurrence", "selective_scan"]
