"""The thread of the controller: an observation in, a command out, then word of it."""

from collections.abc import Callable
from threading import Event, Thread
import traceback

from mbrl_ros.control.build import Engine
from mbrl_ros.control.inbox import ObservationInbox
from mbrl_ros.control.latch import Latch
from mbrl_ros.control.tick import Pilot, PlanPilot, Tick
from mbrl_ros.nodes.command_outlet import CommandOutlet

SILENCE_PERIODS = 1.5
# Time to be told of every tick; the command is already on its way.
OnTick = Callable[[Tick, int], None]


class ControlLoop:
    """
    Runs a pilot at the pace of the observations.

    Parameters
    ----------
    inbox, pilot, outlet : ObservationInbox, Pilot, CommandOutlet
        Where observations come from, what decides, where commands go.
    latch : Latch
        Emergency stop; after its release plans begin anew.
    period_s : float
        Control period.
    on_tick : callable
        Takes each tick and the stamp [ns] of the observation it answers.
    on_crash : callable
        Takes the traceback of what ended the loop; the safe value was sent.
    on_engine : callable
        Takes the engine that plans from the next tick on.

    """

    def __init__(self, inbox: ObservationInbox, pilot: Pilot, outlet: CommandOutlet, latch: Latch,
                 period_s: float, on_tick: OnTick, on_crash: Callable[[str], None],
                 on_engine: Callable[[Engine], None]) -> None:
        self._inbox, self._pilot, self._outlet, self._latch = inbox, pilot, outlet, latch
        self._period_s = period_s
        self._on_tick, self._on_crash, self._on_engine = on_tick, on_crash, on_engine
        self._stop, self._thread = Event(), Thread(target=self._run, name='control', daemon=True)
        self._next_engine: Engine | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; the last command stays what it was."""
        self._stop.set()
        self._thread.join()

    def replace_engine(self, engine: Engine) -> None:
        """Plan with another engine as soon as a tick ends without a plan that still runs."""
        self._next_engine = engine

    def _run(self) -> None:
        try:
            was_stopped = bool(self._latch.reason)
            while not self._stop.is_set():
                observation = self._inbox.wait(SILENCE_PERIODS * self._period_s)
                if observation is None:
                    continue
                stamp_ns = self._inbox.stamp_ns  # a newer message may arrive while it plans
                if observation.state is None and not observation.fresh:
                    self._outlet.send_safe()  # nothing was observed yet
                    continue
                is_stopped = bool(self._latch.reason)
                if was_stopped and not is_stopped:
                    self._pilot.forget()  # plans from before the stop must not move the robot
                was_stopped = is_stopped
                self._take_engine()
                tick = self._pilot.tick(observation)
                self._outlet.send(tick.verdict.command)
                self._on_tick(tick, stamp_ns)
        except Exception:  # whatever it is, the robot must not keep the last command
            self._outlet.send_safe()
            self._on_crash(traceback.format_exc())

    def _take_engine(self) -> None:
        engine, pilot = self._next_engine, self._pilot
        if engine is None or not isinstance(pilot, PlanPilot):
            return
        if pilot.replace_model(engine.mpc, engine.spread_limit):
            self._next_engine = None
            self._on_engine(engine)
