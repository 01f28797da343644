"""Nodes as processes on this machine: a DDS domain for them alone, and their end. No rclpy."""

from contextlib import suppress
import os
import signal
from socket import AF_INET, SOCK_DGRAM, socket
import subprocess

END_TIMEOUT_S = 10.0


def own_domain(first: int | None = None) -> dict[str, str]:
    """
    Return the environment of a ROS domain that nobody here is in yet, on this machine only.

    Parameters
    ----------
    first : int, optional
        Domain, of 1 to 100, to look from; by default one that depends on this process.

    """
    if first is None:
        first = 1 + os.getpid() % 100
    return {'ROS_DOMAIN_ID': str(_free_domain(first)),
            'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'}


def _free_domain(first: int) -> int:
    for domain in (1 + (first - 1 + offset) % 100 for offset in range(100)):
        with socket(AF_INET, SOCK_DGRAM) as probe, suppress(OSError):
            # Whoever is in a domain listens to discovery on UDP port 7400 + 250 * domain.
            probe.bind(('', 7400 + 250 * domain))
            return domain
    return first


def end(process: 'subprocess.Popen[bytes]') -> None:
    """Interrupt a process and wait for it; kill it if it has not ended after ten seconds."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
