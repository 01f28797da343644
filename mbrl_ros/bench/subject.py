"""A workload built on a provider, as the controller builds it, with meters in its joints."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
import ctypes
from dataclasses import dataclass
import gc
import os
from tempfile import TemporaryDirectory
import time
from typing import Any

import numpy as np

from mbrl_ros.bench.process import resident_mb
from mbrl_ros.bench.workload import Workload
from mbrl_ros.control.mpc import Mpc
from mbrl_ros.planning import Noise, Planner
from mbrl_ros.runtime.dynamics import Dynamics
from mbrl_ros.runtime.providers import Session
from mbrl_ros.runtime.rollout import Draw, Rollout
from mbrl_ros.runtime.rollout_config import RolloutConfig

Span = tuple[float, float]  # start and end [s]


@dataclass
class Parts:
    """
    Where one plan's time [s] went; the rest is the Mpc's own.

    Attributes
    ----------
    rollout : float
        At least one tile is inside the provider's session. On a GPU that includes the copies to
        the device and back, which are the provider's.
    copies : float
        Inside `Rollout.costs`, no tile running: conversion, cutting, threads, concatenation.
    planner : float
        Sampling, refits, the shift, and drawing the particles' noise.

    """

    rollout: float = 0.0
    copies: float = 0.0
    planner: float = 0.0


def covered(spans: Sequence[Span]) -> float:
    """Return the time [s] that at least one of the spans covers."""
    total, reached = 0.0, float('-inf')
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


class _MeteredSession:
    """A session that takes down when it runs; tiles run in it on several threads."""

    def __init__(self, session: Session, spans: list[Span]) -> None:
        self._session, self._spans = session, spans

    def run(self, outputs: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        began = time.perf_counter()
        found = self._session.run(outputs, feeds)
        self._spans.append((began, time.perf_counter()))
        return found


class _MeteredRollout(Rollout):
    """A rollout that adds its times to `parts`."""

    def __init__(self, parts: Parts, *args: Any) -> None:
        super().__init__(*args)
        self._parts, self._spans = parts, list[Span]()
        self._session = _MeteredSession(self._session, self._spans)

    def draw(self, rng: np.random.Generator) -> Draw:
        began = time.perf_counter()
        found = super().draw(rng)
        self._parts.planner += time.perf_counter() - began
        return found

    def costs(self, state: np.ndarray, actions: np.ndarray, draw: Draw) -> np.ndarray:
        self._spans.clear()
        began = time.perf_counter()
        found = super().costs(state, actions, draw)
        spent = time.perf_counter() - began
        running = covered(self._spans)
        self._parts.rollout += running
        self._parts.copies += spent - running
        return found


class _MeteredPlanner:
    """A planner that adds its times to `parts`."""

    def __init__(self, parts: Parts, planner: Planner) -> None:
        self._parts, self._planner = parts, planner
        self.asks, self.num_iterations = planner.asks, planner.num_iterations
        self.noise, self.init, self.solution = planner.noise, planner.init, planner.solution
        self.is_settled = planner.is_settled

    def sample(self, state: Any, noise: Noise) -> Any:
        return self._timed(self._planner.sample, state, noise)

    def update(self, state: Any, actions: Any, cost: Any) -> Any:
        return self._timed(self._planner.update, state, actions, cost)

    def shift(self, state: Any, steps: int) -> Any:
        return self._timed(self._planner.shift, state, steps)

    def _timed(self, function: Any, *args: Any) -> Any:
        began = time.perf_counter()
        found = function(*args)
        self._parts.planner += time.perf_counter() - began
        return found


class Subject:
    """
    A workload on a provider, ready to plan.

    Parameters
    ----------
    workload, provider, precision
        What to build, and on what.

    Attributes
    ----------
    compile_s : float
        Time to compile the graph and open its session, libraries already imported.
    cached_load_s : float or None
        The same with the graph in the cache; None where the cache cannot be written.
    memory_mb : float
        Growth of this process's resident memory from before the model to after the first plan.
    plans : list of Parts
        One entry a plan.

    Raises
    ------
    ProviderError
        If the provider cannot run here.

    """

    def __init__(self, workload: Workload, provider: str, precision: str) -> None:
        _release_memory()
        before_mb = resident_mb()
        self.plans: list[Parts] = []
        self._parts = Parts()
        robot, artifact = workload.robot(), workload.artifact()
        rolled_out = RolloutConfig.model_validate({'particles': workload.particles})
        what = artifact, robot, workload.task(), rolled_out, provider, precision
        with own_cache():
            began = time.perf_counter()
            Rollout(*what).close()
            self.compile_s = time.perf_counter() - began
            began = time.perf_counter()
            self.rollout = _MeteredRollout(self._parts, *what)
            spent = time.perf_counter() - began
        self.cached_load_s = spent if self.rollout.was_cached else None
        self._mpc = Mpc(Dynamics(artifact.model, artifact.metadata), self.rollout,
                        _MeteredPlanner(self._parts, workload.planner()), robot,
                        np.random.default_rng(0))
        self._rest, self._safe = np.zeros(workload.num_state), robot.safe_value
        self._mpc.calibrate()
        self.plan()
        _release_memory()
        self.memory_mb = resident_mb() - before_mb

    def plan(self) -> None:
        """Plan as a tick does: one command in flight, warm start from the last plan."""
        self._parts.rollout = self._parts.copies = self._parts.planner = 0.0
        self._mpc.plan(1 + len(self.plans), self._rest, [self._safe])
        self.plans.append(Parts(**vars(self._parts)))

    def close(self) -> None:
        """Stop the tile threads."""
        self.rollout.close()


@contextmanager
def own_cache() -> Iterator[None]:
    """Keep the graphs of measurements out of the user's cache, whose files they would push out."""
    before = os.environ.get('XDG_CACHE_HOME')
    with TemporaryDirectory() as folder:
        os.environ['XDG_CACHE_HOME'] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ['XDG_CACHE_HOME']
            else:
                os.environ['XDG_CACHE_HOME'] = before


def _release_memory() -> None:
    """Give freed memory back, or the next build would grow into it unseen."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # glibc only
    if trim is not None:
        trim(0)
