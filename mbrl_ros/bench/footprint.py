"""Memory and start time of the real controller: its node, in a process of its own."""

from dataclasses import dataclass
from importlib.util import find_spec
import os
from pathlib import Path
import subprocess
import tempfile
import time

from mbrl_ros.bench.process import BenchError, resident_mb
from mbrl_ros.nodes.processes import end, own_domain
from mbrl_ros.nodes.table import GROUPS, NodeOptions

START_TIMEOUT_S = 60.0
# It logs what it built when it is configured; to activate takes milliseconds more, and a node
# that refuses to ends with status 1.
CONFIGURED = 'spread limit'
SETTLE_S = 1.0
POLL_S = 0.01
LOG_TAIL = 2000


@dataclass(frozen=True)
class Footprint:
    """
    What the controller takes, active and without a robot; None where ROS is not installed.

    Attributes
    ----------
    rss_mb : float
        Resident memory [10^6 bytes].
    start_s : float
        From starting the process to configured: model verified, compiled (nothing is in the
        cache), plans warmed up for up to two seconds.
    torch : bool
        True if a library of torch is loaded.
    note : str
        Why there are no numbers, or ''.

    """

    rss_mb: float | None = None
    start_s: float | None = None
    torch: bool | None = None
    note: str = ''


def controller_footprint() -> Footprint:
    """
    Start `mpc_controller` with the shipped model, wait until it is configured, and look at it.

    Raises
    ------
    BenchError
        If it ends, or is not configured within a minute.

    """
    if find_spec('rclpy') is None:
        return Footprint(note='rclpy is not installed')
    entry, = GROUPS['control']
    # Plans that are late on a busy machine take no other memory.
    command = entry.command(NodeOptions(), {'allow_slow': True})
    # A domain of its own: it must neither find a robot nor be found.
    shared = os.environ | own_domain()
    with tempfile.TemporaryDirectory(prefix='mbrl_ros_') as folder:
        log = Path(folder) / 'log'
        began = time.perf_counter()
        with log.open('wb') as file:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file,
                                       stderr=file, start_new_session=True,
                                       env=shared | {'XDG_CACHE_HOME': folder})
        try:
            start_s = _wait_until_configured(process, log, began)
            time.sleep(SETTLE_S)
            _check_alive(process, log)
            return Footprint(resident_mb(process.pid), start_s, maps_torch(process.pid))
        finally:
            end(process)


def maps_torch(pid: int) -> bool:
    """Return whether a process has loaded a library of torch."""
    return 'libtorch' in Path(f'/proc/{pid}/maps').read_text()


def _wait_until_configured(process: 'subprocess.Popen[bytes]', log: Path, began: float) -> float:
    while CONFIGURED not in log.read_text(errors='replace'):
        _check_alive(process, log)
        if time.perf_counter() - began > START_TIMEOUT_S:
            raise BenchError(f'mpc_controller is not up after {START_TIMEOUT_S:g} s.'
                                 + _tail(log))
        time.sleep(POLL_S)
    return time.perf_counter() - began


def _check_alive(process: 'subprocess.Popen[bytes]', log: Path) -> None:
    if process.poll() is not None:
        raise BenchError(f'mpc_controller ended with status {process.returncode}.'
                             + _tail(log))


def _tail(log: Path) -> str:
    return '\n' + log.read_text(errors='replace')[-LOG_TAIL:]
