"""ONNX Runtime on the CPU: one session, run by one thread a core."""

import os

from mbrl_ros.runtime.ort import open_ort
from mbrl_ros.runtime.providers import Form, Session

PRECISIONS = ('float32',)


def problem() -> str:
    """Return '': every ONNX Runtime has it."""
    return ''


def form(precision: str) -> Form:
    """Return a Loop over one product a member: the fastest of the four, measured."""
    return Form(loop=True, split_members=True)


def num_parallel() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0))


def open_session(model: bytes, precision: str) -> Session:
    """Open a session of one thread."""
    session: Session = open_ort(model, 'CPUExecutionProvider')
    return session
