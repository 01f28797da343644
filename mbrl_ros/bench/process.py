"""Measurements in processes of their own, and of processes."""

from collections.abc import Mapping
import os
from pathlib import Path
import subprocess
import sys

from mbrl_ros.core.errors import MbrlError


class BenchError(MbrlError):
    """A process that measures, or is measured, failed; the text ends with what it said."""


def run_module(module: str, *arguments: object, environment: Mapping[str, str] | None = None
               ) -> str:
    """
    Run `python -m module` with its arguments, and return what it printed.

    Raises
    ------
    BenchError
        If it ends with another status than 0.

    """
    command = [sys.executable, '-m', module, *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | dict(environment or {}), capture_output=True,
                          text=True, check=False)
    if done.returncode:
        raise BenchError(f'{" ".join(command)}: exit status {done.returncode}\n{done.stderr}')
    return done.stdout


def resident_mb(pid: int | str = 'self') -> float:
    """Return the resident memory [10^6 bytes] of a process."""
    return _status_mb(pid, 'VmRSS:')


def peak_mb(pid: int | str = 'self') -> float:
    """Return the most resident memory [10^6 bytes] that a process had since it began."""
    # Not of getrusage: that begins with the memory of the process that started this one.
    return _status_mb(pid, 'VmHWM:')


def _status_mb(pid: int | str, entry: str) -> float:
    status = Path(f'/proc/{pid}/status').read_text()
    line, = (line for line in status.splitlines() if line.startswith(entry))
    return int(line.split()[1]) * 1024 / 1e6
