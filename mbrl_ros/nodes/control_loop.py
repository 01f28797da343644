"""The control loop: an observation in, a command out, then word of it."""

from collections import deque
from collections.abc import Callable
from threading import Event
import time
import traceback

from mbrl_ros.control.build import Engine
from mbrl_ros.control.inbox import ObservationInbox
from mbrl_ros.control.latch import Latch
from mbrl_ros.control.metronome import Metronome
from mbrl_ros.control.tick import Observation, Pilot, PlanPilot, Tick
from mbrl_ros.nodes.command_outlet import CommandOutlet
from mbrl_ros.nodes.realtime import RealTime, RealTimeParams
from mbrl_ros.nodes.receiver import Receive, Receiver

POLL_S = 0.1
# A sleep ends up to this much late, and what runs after it is slow at first: so the last of the
# way is not slept.
AWAKE_S = 3e-4
# A rehearsal begins so long before a message is due: it is over before a simulated robot
# publishes that.
REHEARSAL_S = 1e-3
# If the tick before took so long that it begins later than this, there is none.
LATEST_REHEARSAL_S = 3e-4
# Time to be told of every tick; the command is already on its way.
OnTick = Callable[[Tick, int], None]


class ControlLoop:
    """
    Runs a pilot at the pace of the observations, in the thread that hears them.

    Parameters
    ----------
    receiver : Receiver
        Has the thread.
    inbox, pilot, outlet : ObservationInbox, Pilot, CommandOutlet
        Where observations come from, what decides, where commands go.
    latch : Latch
        Emergency stop; after its release plans begin anew.
    metronome : Metronome or None
        Holds early commands back, so that they leave at a steady rate; None in lock-step.
    slack_s : float
        Time after an observation within which nothing else may be done; infinite in lock-step.
    realtime : RealTimeParams
        What the operating system is asked for.
    rehearse : callable
        Does what the next message is going to need, shortly before that is due.
    on_tick : callable
        Takes each tick and the stamp [ns] of the observation it answers.
    on_crash : callable
        Takes the traceback of what ended the loop; the safe value was sent.
    on_engine : callable
        Takes the engine that plans from the next tick on.
    warn : callable
        Takes what the operating system refused.

    """

    def __init__(self, receiver: Receiver, inbox: ObservationInbox, pilot: Pilot,
                 outlet: CommandOutlet, latch: Latch, metronome: Metronome | None,
                 slack_s: float, realtime: RealTimeParams, rehearse: Callable[[], None],
                 on_tick: OnTick, on_crash: Callable[[str], None],
                 on_engine: Callable[[Engine], None], warn: Callable[[str], None]) -> None:
        self._receiver, self._inbox, self._pilot = receiver, inbox, pilot
        self._outlet, self._latch = outlet, latch
        self._metronome, self._slack_s, self._realtime = metronome, slack_s, realtime
        self._rehearse, self._on_tick, self._on_crash = rehearse, on_tick, on_crash
        self._on_engine, self._warn = on_engine, warn
        # A stop from before is forgotten with its release, like one from now on.
        self._num_trips = latch.num_trips - bool(latch.reason)
        self._alive_s, self._is_rehearsed = time.monotonic(), False
        self._stop, self._ended = Event(), Event()
        self._engines: deque[Engine] = deque()  # the first is offered to the pilot

    def start(self) -> None:
        """Begin, soon."""
        self._receiver.lend(self._run)

    def stop(self, timeout_s: float) -> bool:
        """End the loop; return whether it ended in time. The last command is the caller's."""
        self._stop.set()
        if not self._ended.wait(timeout_s):
            return False
        self._take_engine()  # the last tick may have begun to plan with it
        while self._engines:
            self._engines.popleft().close()
        return True

    def stalled_s(self) -> float:
        """Return the time [s] since the loop last went round; 0 once it has ended."""
        return 0.0 if self._ended.is_set() else time.monotonic() - self._alive_s

    def replace_engine(self, engine: Engine) -> None:
        """Plan with another engine from the next plan on, in place of one that waits."""
        self._engines.append(engine)

    def _run(self, receive: Receive) -> None:
        try:
            with RealTime(self._realtime, self._warn) as thread:
                while not self._stop.is_set():
                    self._alive_s = time.monotonic()
                    if self._take_engine():
                        thread.cover_new_threads()
                    self._wait(receive)
                    observation = self._inbox.take()
                    if observation is not None:
                        self._tick(observation, self._inbox.due_s)
                        thread.slack(self._inbox.due_s + self._slack_s)
        except Exception:  # whatever it is, the robot must not keep the last command
            text = traceback.format_exc()
            try:
                self._outlet.send_safe()
            finally:
                self._on_crash(text)
        finally:
            self._ended.set()

    def _wait(self, receive: Receive) -> None:
        """Wait for what may make a tick due; rehearse on the way, once a period."""
        wait_s = self._inbox.due_in_s()
        if self._metronome is not None:
            rehearsal_s = self._metronome.next_s() - REHEARSAL_S - time.monotonic()
            if rehearsal_s > 0.0:
                wait_s = min(wait_s, rehearsal_s)
                self._is_rehearsed = False
            elif rehearsal_s > -LATEST_REHEARSAL_S and not self._is_rehearsed:
                self._rehearse()
                self._is_rehearsed = True
        # Past the deadline too: a message that came meanwhile is better than none.
        receive(max(0.0, min(POLL_S, wait_s)))

    def _tick(self, observation: Observation, due_s: float) -> None:
        if observation.state is None and not observation.fresh:
            self._outlet.send_safe()  # nothing was observed yet
            return
        num_trips = self._latch.num_trips
        if self._num_trips != num_trips and not self._latch.reason:
            self._pilot.forget()  # plans from before the stop must not move the robot
            self._num_trips = num_trips
        if self._metronome is not None and observation.fresh:
            self._metronome.arrive(due_s)
        tick = self._pilot.tick(observation)
        outgoing = self._outlet.prepare(tick.verdict.command, observation.stamp_ns, tick.following,
                                        num_trips)
        metronome = self._metronome if observation.fresh and not tick.verdict.safe else None
        if metronome is not None:
            ready_s = time.monotonic()
            leave_s = metronome.leave_s(due_s, ready_s)
            if leave_s > ready_s:  # a sleep of no length takes its time, too
                self._pilot.prepare_review()
                time.sleep(max(0.0, leave_s - AWAKE_S - time.monotonic()))
                while time.monotonic() < leave_s:
                    pass
        self._outlet.send(outgoing)
        sent_s = time.monotonic()
        # The command is on its way; from here on nobody waits.
        self._pilot.review(observation, tick)
        self._on_tick(tick, observation.stamp_ns)
        if metronome is not None:
            metronome.adapt(time.monotonic() - sent_s)

    def _take_engine(self) -> bool:
        pilot, is_taken = self._pilot, False
        while self._engines and isinstance(pilot, PlanPilot):
            engine = self._engines[0]
            if pilot.replace_model(engine.mpc, engine.spread_limit, engine.gauge,
                                   engine.adaptive_horizon):
                self._on_engine(self._engines.popleft())
                is_taken = True
            elif len(self._engines) > 1:  # a newer one waits: this thread alone may close it
                self._engines.popleft().close()
            else:
                break
        return is_taken
