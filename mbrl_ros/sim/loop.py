"""The thread that turns commands into observations, in real time or in lock-step; no ROS."""

from collections import deque
from collections.abc import Callable
import math
from threading import Condition, Event, Thread
import time
import traceback
from typing import Any, Protocol, TypeVar

import numpy as np

from mbrl_ros.core.errors import MbrlError
from mbrl_ros.sim.command_delay import CommandDelay
from mbrl_ros.sim.command_inbox import CommandInbox
from mbrl_ros.sim.mujoco_robot import MujocoRobot, Readings
from mbrl_ros.sim.tick_grid import TickGrid

WARN_AFTER_S = 5.0
POLL_S = 0.05
# A late loop still gives the callbacks a chance at the lock.
YIELD_S = 1e-4
# The system wakes a thread this late at times: the loop asks for it earlier, and spins the rest.
EARLY_S = 3e-4
# Simulated time that a reset skips: whoever cuts the samples into transitions sees the gap.
RESET_GAP_S = 1.0

T = TypeVar('T')


class Outlet(Protocol):
    """What the loop needs of the world around it; called in the loop's thread."""

    def publish_clock(self, stamp_ns: int) -> None:
        """Publish simulated time [ns]."""

    def build_observation(self, readings: Readings) -> dict[str, Any]:
        """Return what `publish_observation` takes, so that this is done before it is due."""

    def rehearse(self, messages: dict[str, Any]) -> None:
        """Do what publishing these needs, shortly before: what ran long ago runs slowly."""

    def publish_observation(self, stamp_ns: int, messages: dict[str, Any]) -> None:
        """Publish what some topics report at one moment."""

    def has_peers(self) -> bool:
        """Whether someone listens to every observation topic and sends every command topic."""

    def warn(self, text: str) -> None:
        """Tell the user what may be wrong."""

    def fail(self, text: str) -> None:
        """Tell the user what went wrong."""


class SimLoop:
    """
    Ticks a robot at its control rate.

    One condition guards everything: the thread holds it except while it waits, and other threads
    take it for moments. In real time a tick latches the newest command, publishes the state and
    advances one control period, so that the command which answers a state acts from the next
    tick. In lock-step it publishes, waits for the command that answers, and advances with that.
    Topics faster than the control rate report between the ticks: at their time in real time, all
    at once in lock-step.

    Parameters
    ----------
    robot : MujocoRobot
        What moves.
    outlet : Outlet
        Where observations go.
    rng : Generator
        Draws the initial state of each episode.
    lockstep : bool
        Wait for an answer to each observation.
    speed_factor : float
        Simulated seconds a second; real time only.
    actuation_delay_steps : int
        Control periods that commands act late, beyond the one of real time.
    watchdog_periods : int
        Control periods without a command after which the safe value acts; real time only.

    Attributes
    ----------
    pause : Event
        Set at the end of each tick.

    """

    def __init__(self, robot: MujocoRobot, outlet: Outlet, rng: np.random.Generator, *,
                 lockstep: bool = False, speed_factor: float = 1.0,
                 actuation_delay_steps: int = 0, watchdog_periods: int = 5) -> None:
        spec = robot.spec
        self.robot, self._outlet, self._rng = robot, outlet, rng
        self._lockstep, self._watchdog_periods = lockstep, watchdog_periods
        self.is_time_simulated = lockstep or speed_factor != 1.0
        self.grid = TickGrid(spec.dt_ns, speed_factor, self.is_time_simulated)
        self.inbox = CommandInbox(spec.action)
        self._delay = CommandDelay(actuation_delay_steps, spec.safe_value)
        self._wake = Condition()
        self.pause = Event()
        self._thread: Thread | None = None
        self.num_steps = self.num_received = self.num_rejected = self.num_trips = 0
        self.num_episodes = 0
        self.failure = ''
        self.is_paused, self._is_stopping, self._is_matched = True, False, False
        self._remaining: int | None = None
        self._waiting_for, self._waiting_since_s = '', 0.0
        self._is_observed = False
        self._latched = spec.safe_value
        self._age: dict[str, int] = {}
        # Messages between two ticks, with the (monotonic) time when each is to be published.
        self._between: deque[tuple[float, int, dict[str, Any]]] = deque()
        self.reset()

    def start(self) -> None:
        """Start the thread, paused or not as `set_paused` left it."""
        self._is_stopping = False
        self._thread = Thread(target=self._run, name='sim_loop', daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, whatever it waits for; the world stands still."""
        with self._wake:
            self._is_stopping, self.is_paused = True, True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def set_paused(self, is_paused: bool, num_steps: int = 0) -> None:
        """Pause, or go on: for a number of control periods, or, with 0, until told otherwise."""
        with self._wake:
            if self.is_paused and not is_paused:
                self._remaining = num_steps or None
                self._is_matched = False
                self.grid.restart()
            self.is_paused = is_paused
            self._wake.notify_all()

    def reset(self) -> None:
        """Begin an episode from a newly drawn state; commands in flight are forgotten."""
        with self._wake:
            self.robot.reset(self._rng)
            self._messages = self._outlet.build_observation(self.robot.observe())
            self._between.clear()
            if self._is_observed:
                self.grid.skip(RESET_GAP_S)
            self._is_observed = False
            self.num_episodes += 1
            self.failure = ''
            self.inbox.clear()
            self._delay.clear()
            self._latched = self.robot.spec.safe_value
            # Beyond the limit: what never spoke cannot have fallen silent.
            self._age = dict.fromkeys(self.inbox.topics, self._watchdog_periods)
            self._wake.notify_all()

    def put_command(self, topic: str, sent_ns: int, values: np.ndarray | None) -> None:
        """Hand in a command sent at a system time; None stands for a refused one."""
        with self._wake:
            self.num_received += 1
            self.num_rejected += values is None
            # A sender whose clock is ahead must not hold its commands back.
            self.inbox.put(topic, min(sent_ns, time.time_ns()), values)
            if self._lockstep:
                self._wake.notify_all()

    def waiting(self) -> tuple[str, float]:
        """Return what lock-step waits for ('' for nothing), and since how long [s]."""
        with self._wake:
            return self._waiting_for, time.monotonic() - self._waiting_since_s

    def _run(self) -> None:
        with self._wake:
            while not self._is_stopping:
                try:
                    if self.is_paused:
                        self._wake.wait()
                    elif self._lockstep:
                        self._tick_lockstep()
                    else:
                        self._tick_real_time()
                except Exception as error:
                    self.failure, self.is_paused = str(error), True
                    text = str(error) if isinstance(error, MbrlError) else traceback.format_exc()
                    self._outlet.fail(f'paused until the world is reset: {text}')

    def _tick_real_time(self) -> None:
        while True:
            self._wake.wait(max(YIELD_S, self._due_s() - EARLY_S - time.monotonic()))
            if self.is_paused:
                return
            due_s = self._due_s()
            if due_s - time.monotonic() > EARLY_S:
                continue
            self._outlet.rehearse(self._between[0][2] if self._between else self._messages)
            while time.monotonic() < due_s:
                pass
            if not self._between:
                break
            self._publish_between(time.monotonic())
        self.grid.catch_up()
        stamp_ns = self.grid.stamp_ns
        if self.is_time_simulated:
            self._outlet.publish_clock(stamp_ns)
            self._latch(None)
            # Commands sent from here on act from the next tick; whoever dates them by /clock
            # must get a time after this tick.
            self._outlet.publish_clock(stamp_ns + 1)
            is_over = self._observe(stamp_ns)
        else:
            # The observation first, it is waited for. A command that came after the ideal time
            # has a date that says so, and acts later.
            is_over = self._observe(stamp_ns)
            self._latch(stamp_ns)
        if not is_over:
            self._advance(self._latched)

    def _due_s(self) -> float:
        """Return when (monotonic) something is to be published next."""
        return self._between[0][0] if self._between else self.grid.deadline_s

    def _tick_lockstep(self) -> None:
        if not self._is_matched:
            self._is_matched = bool(self._wait(
                lambda: self._outlet.has_peers() or None,
                'a peer on every observation and command topic'))
            return
        stamp_ns, since_ns = self.grid.stamp_ns, time.time_ns()
        self._outlet.publish_clock(stamp_ns)
        if self._observe(stamp_ns):
            return
        # What was sent before the observation cannot be its answer.
        answer = self._wait(lambda: self.inbox.take_answer(since_ns),
                            f'a command on {", ".join(self.inbox.topics)}')
        if answer is not None:
            self._advance(answer)

    def _wait(self, ready: Callable[[], T | None], what: str) -> T | None:
        """Wait until `ready` returns something; None if paused, stopped or reset meanwhile."""
        episode, started_s = self.num_episodes, time.monotonic()
        warned_s, self._waiting_for, self._waiting_since_s = started_s, what, started_s
        try:
            while not self.is_paused and episode == self.num_episodes:
                found = ready()
                if found is not None:
                    return found
                now_s = time.monotonic()
                if now_s - warned_s > WARN_AFTER_S:
                    warned_s = now_s
                    self._outlet.warn(f'lock-step: still waiting for {what} '
                                      f'after {now_s - started_s:.0f} s')
                self._wake.wait(POLL_S)
            return None
        finally:
            self._waiting_for = ''

    def _latch(self, until_ns: int | None) -> None:
        for topic in self.inbox.topics:
            indices = self.inbox.indices(topic)
            values = self.inbox.take_newest(topic, until_ns)
            if values is not None:
                self._latched[indices], self._age[topic] = values, 0
                continue
            self._age[topic] += 1
            if self._age[topic] == self._watchdog_periods:
                self._latched[indices] = self.robot.spec.safe_value[indices]
                self.num_trips += 1
                self._outlet.warn(f'watchdog: no command on {topic} for {self._watchdog_periods} '
                                  'control periods, the safe value acts')

    def _observe(self, stamp_ns: int) -> bool:
        """Publish the state; return whether the run ends with it."""
        self._is_observed = True
        self._outlet.publish_observation(stamp_ns, self._messages)
        if self._remaining == 0:
            self.is_paused = True
        return self.is_paused

    def _publish_between(self, until_s: float) -> None:
        """Publish what is due up to a (monotonic) time."""
        while self._between and self._between[0][0] <= until_s:
            _, stamp_ns, messages = self._between.popleft()
            if self.is_time_simulated:
                self._outlet.publish_clock(stamp_ns)
            self._outlet.publish_observation(stamp_ns, messages)

    def _advance(self, command: np.ndarray) -> None:
        between = self.robot.step(self._delay.push(command))
        self._between.extend(
            (*self.grid.after(elapsed_ns), self._outlet.build_observation(readings))
            for elapsed_ns, readings in between)
        if self._lockstep:
            self._publish_between(math.inf)
        self._messages = self._outlet.build_observation(self.robot.observe())
        self.num_steps += 1
        if self._remaining is not None:
            self._remaining -= 1
        self.grid.advance()
        self.pause.set()
