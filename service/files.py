"""Whether a file that was read before is still the same."""

import os

Signature = tuple[int, int, int]
"""Inode, size and time of change (ctime: nobody can set it back) of a file: another one means another file."""


def signature(status: os.stat_result) -> Signature:
    """Of the file with this status."""
    return status.st_ino, status.st_size, status.st_ctime_ns
