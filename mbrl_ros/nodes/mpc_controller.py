"""The controller node: drives a robot with a learned model, or collects data from it."""

from contextlib import ExitStack
import math
from pathlib import Path
from threading import Event

import numpy as np
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.task import Future
from std_msgs.msg import Bool
from std_srvs.srv import SetBool, Trigger

from mbrl_ros.control import exploration
from mbrl_ros.control.build import build_engine, build_pilot, Built, Engine, PilotConfig
from mbrl_ros.control.exploitation import ExploitationConfig
from mbrl_ros.control.inbox import ObservationInbox
from mbrl_ros.control.ladder import LadderConfig
from mbrl_ros.control.latch import Latch
from mbrl_ros.control.meter import Meter
from mbrl_ros.control.metronome import Metronome
from mbrl_ros.control.tick import PlanPilot, Tick
from mbrl_ros.control.trust import TrustConfig
from mbrl_ros.core.errors import PlanningError
from mbrl_ros.core.paths import find_model
from mbrl_ros.core.robot import load_robot
from mbrl_ros.core.task import load_task
from mbrl_ros.nodes import params
from mbrl_ros.nodes.chore import Chore
from mbrl_ros.nodes.command_outlet import CommandOutlet
from mbrl_ros.nodes.control_loop import ControlLoop
from mbrl_ros.nodes.controller_params import ControllerParams
from mbrl_ros.nodes.controller_reports import ControllerReports
from mbrl_ros.nodes.controller_topics import ControllerTopics
from mbrl_ros.nodes.diagnostics import Diagnostics, REPORT_PERIOD_S
from mbrl_ros.nodes.goal_topics import GoalTopics
from mbrl_ros.nodes.hearing import Hearing, Rehearsal
from mbrl_ros.nodes.joint_order import check_joint_order
from mbrl_ros.nodes.lifecycle import ManagedNode, run
from mbrl_ros.nodes.messages import LATCHED_QOS, message_class, RELIABLE_QOS, SENSOR_QOS
from mbrl_ros.nodes.model_reload import ModelReload
from mbrl_ros.nodes.qos import subscribe
from mbrl_ros.nodes.realtime import RealTimeParams
from mbrl_ros.nodes.receiver import Apart, Receiver
from mbrl_ros.planning import asked_by, config_class, load_planning
from mbrl_ros.runtime.precompile import precompile
from mbrl_ros.runtime.rollout_config import RolloutConfig

WATCH_PERIOD_S = 0.1
# Longer than any round of the control loop, whose plans have a deadline, may take.
LOOP_TIMEOUT_S = 0.5
PATIENCE_S = 60.0  # in lock-step, where plans have none
# Prefixes of parameters that do not change with mode, signal and planner.
STAYING = ('', 'fallback.', 'trust.', 'exploitation.', 'realtime.')


class MpcController(ManagedNode):
    """
    Lifecycle node: configure loads, checks, compiles and warms up; only active commands the robot.

    What hears the robot has a thread of its own, and while the node is active the control loop
    runs in it; the executor does the rest.
    """

    params: ControllerParams
    live_params = frozenset({'model'})

    def __init__(self) -> None:
        super().__init__('mpc_controller', ControllerParams)
        self._made = ExitStack()  # what configure made, to be released
        self._declared_for: tuple[str, ...] = ()
        # As old as the node: an emergency stop outlives deactivation and clean-up.
        self._latch = Latch()
        self._reload: ModelReload | None = None
        self._crashed = self.create_guard_condition(self._on_crash)
        self.create_service(Trigger, '~/stop', self._on_stop)
        self.create_service(SetBool, '~/enable', self._on_enable)
        # In a group of its own: while it waits, those of the default group must not.
        self.create_service(Trigger, '~/reload_model', self._on_reload,
                            callback_group=ReentrantCallbackGroup())
        # A button is heard whatever it offers: best effort, or pressed before this node was there.
        for qos in (SENSOR_QOS, RELIABLE_QOS, LATCHED_QOS):
            self.create_subscription(Bool, 'emergency_stop', self._on_stop_topic, qos)

    def configure(self) -> None:
        """Verify the model against the robot, compile, open the runtime and warm up."""
        p = self.params
        self._robot = robot = load_robot(p.robot)
        self._task = load_task(p.task, robot)
        wire = robot.observation_topics() | robot.action_topics()
        for kind in (*wire.values(), *(g.type for g in self._task.goal if g.type)):
            message_class(kind)  # refused here, before anything is made
        self._delay_steps = p.actuation_delay_steps if p.actuation_delay_steps >= 0 \
            else robot.actuation_delay_steps + (not p.lockstep)
        if not p.lockstep:  # only a simulated robot waits for commands
            check_joint_order(self, robot)
        with ExitStack() as made:  # if anything below is refused, nothing of it stays
            self._make(made)
            self._made = made.pop_all()

    def _make(self, made: ExitStack) -> None:
        p, robot = self.params, self._robot
        self._meter = Meter()
        self._built = self._build(p)
        made.callback(self._release_model)
        self._engine = self._built.engine
        pilot = self._built.pilot
        self._supervisor = pilot.supervisor if isinstance(pilot, PlanPilot) else None
        places = [field.name for field in robot.action if field.unit in {'m', 'rad'}]
        if places:
            self._warn(f'{", ".join(places)}: a position is commanded. The safe value is a place, '
                       'and the robot jumps to it: command velocities or forces')
        for line in self._built.notes:
            self.get_logger().info(line)
        self._inbox = ObservationInbox(robot, lockstep=p.lockstep)
        self._goal = GoalTopics(self, self._task, self._take_goal)
        made.callback(self._goal.close)
        self._topics = ControllerTopics(self, robot, self._task, self._config, p.frame)
        made.callback(self._topics.close)
        # After the other topics: DDS tells of them in this order, so whoever has heard the first
        # command has found the others too.
        self._outlet = CommandOutlet(self, robot, self._latch)
        made.callback(self._outlet.close)
        self._reports = ControllerReports(
            robot, self._inbox, self._meter, self._latch, self._outlet, self._topics,
            self._supervisor, p.plan_periods * robot.dt_s * 1e3, lambda: self.is_active)
        self._reports.facts = self._built.facts
        self._tell_of_model()
        diagnostics = Diagnostics(self, robot.name, self._reports.concerns())
        made.callback(lambda: diagnostics.close(self.ending))
        self._pause = Event()
        for chore in (Chore(WATCH_PERIOD_S, self._watch_loop, self._fail),
                      Chore(REPORT_PERIOD_S, diagnostics.publish, self._fail, self._pause)):
            made.callback(chore.close)
        self._hear(made)

    def _hear(self, made: ExitStack) -> None:
        is_simulated = bool(self.get_parameter('use_sim_time').value)
        qos, apart = RELIABLE_QOS if self.params.lockstep else SENSOR_QOS, Apart()
        hearing = Hearing(self._robot, self._inbox, self._report_message,
                          self._ros_now_ns if is_simulated else None)
        self._rehearsal = Rehearsal(self._robot, hearing)
        subscriptions = []
        for topic, kind in self._robot.observation_topics().items():
            subscriptions.append(subscribe(self, kind, topic, hearing.callbacks[topic], qos,
                                           apart))
            made.callback(self.destroy_subscription, subscriptions[-1])
        self._receiver = Receiver(self, subscriptions, self._note_crash)
        made.callback(self._receiver.close)

    def activate(self) -> None:
        """Start the control loop with empty slots, and without what was planned before."""
        self._refuse_slow_plans()
        if not self.params.lockstep:  # at configure it may not have been discovered yet
            check_joint_order(self, self._robot)
        self._inbox.forget()
        self._built.pilot.forget()
        self._meter.last = None
        self._reports.crash = ''
        # The first command, so that what is in flight is known: the pilot assumes safe values.
        self._outlet.open()
        period_s, is_paced = self._robot.dt_s, not self.params.lockstep
        self._loop = ControlLoop(
            self._receiver, self._inbox, self._built.pilot, self._outlet, self._latch,
            Metronome(period_s, self.params.deadline * period_s) if is_paced else None,
            period_s if is_paced else math.inf, params.read(self, RealTimeParams, 'realtime.'),
            self._rehearsal, self._account, self._note_crash, self._take_engine, self._warn)
        self._loop.start()

    def _tell_of_model(self) -> None:
        if self._engine is not None:
            self._topics.publish_model_info({**self._engine.metadata, **self._engine.facts})

    def _refuse_slow_plans(self) -> None:
        p, chunk_s = self.params, self.params.chunk_steps * self._robot.dt_s
        p99_s = self._engine.plan_p99_s if self._engine is not None else 0.0
        limit_s = p.plan_periods * self._robot.dt_s
        if p.lockstep or p99_s <= limit_s:
            return
        periods = f'{p.chunk_steps} control periods' if p.chunk_steps > 1 else 'control period'
        problem = (f'plans take {p99_s * 1e3:.1f} ms (99th percentile at configure); the deadline '
                   f'is {limit_s * 1e3:g} ms of the {periods} of {chunk_s * 1e3:g} ms: ticks will '
                   'act on old plans.')
        if p99_s > chunk_s and not p.allow_slow:
            raise PlanningError(f'{problem} `mbrl-ros bench tune` finds a budget that fits, more '
                                "'chunk_steps' give a plan more time; clean up, set one (or "
                                "'allow_slow' to true), and configure again.")
        self.get_logger().warning(problem)

    def deactivate(self) -> None:
        """Stop the loop, then leave the safe value as the last command."""
        self._outlet.shut()  # first: a loop that hangs must not keep the robot moving
        timeout_s = PATIENCE_S if self.params.lockstep else LOOP_TIMEOUT_S + self._robot.dt_s
        if not self._loop.stop(timeout_s):
            self.get_logger().fatal('the control loop does not end: the safe value was sent, and '
                                    'nothing else will be. Restart the node')
        self._outlet.flush()
        if self._reload is not None:
            self._reload.cancel()

    def cleanup(self) -> None:
        """Release model, topics and threads."""
        self._made.close()

    def _release_model(self) -> None:
        self._built.pilot.close()
        if self._engine is not None:
            self._engine.close()
        # The last decision holds the rollout, and that the model: not beside the next one.
        self._meter.last = None
        del self._built, self._engine

    # Building.

    def _build(self, p: ControllerParams) -> Built:
        planner = p.planner or self._task.planner
        planning = load_planning(planner)
        if p.mode == 'collect':
            source, model = p.signal, Path()
            kind, defaults = exploration.config_class(source), {}
        else:
            source, model = planning.planner, find_model(p.model or self._robot.name)
            kind, defaults = config_class(source), planning.params
        if (p.mode, p.signal, planner) != self._declared_for:  # other parameters, or defaults
            self._undeclare_plugins()
        self._declared_for = (p.mode, p.signal, planner)
        for prefix, section, values in (
                ('rollout.', RolloutConfig, planning.rollout.model_dump()),
                ('fallback.', LadderConfig, {}), ('trust.', TrustConfig, {}),
                ('exploitation.', ExploitationConfig, {}), ('realtime.', RealTimeParams, {}),
                (f'{source}.', kind, defaults)):
            params.declare(self, section, prefix, values)
            self.params_models[prefix] = section
        deadline_s = None if p.lockstep else p.deadline * self._robot.dt_s
        self._config = PilotConfig(
            model=model, signal=p.signal if p.mode == 'collect' else '',
            planner=planning.planner, source_config=params.read(self, kind, f'{source}.'),
            rollout=params.read(self, RolloutConfig, 'rollout.'), provider=p.provider,
            precision=p.precision, delay_steps=self._delay_steps, deadline_s=deadline_s,
            ladder=params.read(self, LadderConfig, 'fallback.'),
            trust=params.read(self, TrustConfig, 'trust.'),
            exploitation=params.read(self, ExploitationConfig, 'exploitation.'),
            max_spread=p.max_spread, seed=p.seed, chunk_steps=p.chunk_steps,
            open_loop=p.open_loop)
        return build_pilot(self._robot, self._task, self._config, self._latch)

    def _undeclare_plugins(self) -> None:
        for prefix in [prefix for prefix in self.params_models if prefix not in STAYING]:
            for field in self.params_models.pop(prefix).model_fields:
                if self.has_parameter(prefix + field):
                    self.undeclare_parameter(prefix + field)

    # What the receiver calls, in its thread.

    def _report_message(self, problem: str) -> None:
        self.get_logger().error(problem, throttle_duration_sec=2.0)

    def _ros_now_ns(self) -> int:
        return int(self.get_clock().now().nanoseconds)

    # Callbacks, in the executor's thread.

    def _take_goal(self, goal: np.ndarray) -> None:
        if self._engine is not None:
            self._engine.rollout.set_goal(goal)

    def _stop_robot(self, reason: str) -> None:
        if not self._latch.trip(reason):
            return  # it is stopped
        if self.is_active:  # at once, whatever the control loop does
            self._outlet.send_safe()
        self.get_logger().error(f'{reason}; ~/enable lets commands out again')

    def _on_stop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._stop_robot('emergency stop by ~/stop')
        response.success, response.message = True, self._latch.reason
        return response

    def _on_stop_topic(self, message: Bool) -> None:
        if message.data:  # false releases nothing: a publisher that restarts must not
            self._stop_robot('emergency stop by the topic emergency_stop')

    def _on_enable(self, request: SetBool.Request,
                   response: SetBool.Response) -> SetBool.Response:
        if not request.data:
            self._stop_robot('emergency stop by ~/enable: false')
            response.success, response.message = True, self._latch.reason
            return response
        was_stopped = self._latch.release()
        response.success = True
        response.message = 'enabled; plans begin anew' if was_stopped else 'was not stopped'
        self.get_logger().warning(response.message)
        return response

    async def _on_reload(self, request: Trigger.Request,
                         response: Trigger.Response) -> Trigger.Response:
        response.message = self._why_no_reload()
        if response.message:
            return response
        done: Future[tuple[bool, str]] = Future(executor=self.executor)
        p, config, engine = self.params, self._config, self._engine
        assert engine is not None

        def build() -> Engine:
            path = find_model(self.get_parameter('model').value or self._robot.name)
            precompile(path, self._robot, self._task, config.rollout, config.provider,
                       config.precision, asked_by(config.planner))
            return build_engine(self._robot, self._task, config.with_model(path),
                                engine.rollout.num_tiles)
        self._reload = ModelReload(build, self._loop.replace_engine,
                                   None if p.lockstep else p.plan_periods * self._robot.dt_s,
                                   lambda success, text: done.set_result((success, text)))
        result = await done
        assert result is not None
        response.success, response.message = result
        self._reload = None
        if response.success:
            self.get_logger().info(f'~/reload_model: {response.message}')
        else:  # rclpy takes one severity a line of code
            self.get_logger().error(f'~/reload_model: {response.message}')
        return response

    def _why_no_reload(self) -> str:
        if not self.is_active:
            return 'the node is not active: configure reads the model anyway'
        if self._engine is None:
            return 'the collect mode has no model'
        return 'another reload is under way' if self._reload is not None else ''

    def _watch_loop(self) -> None:
        if not self.is_active or self.params.lockstep:
            return
        self._reports.stalled_s = self._loop.stalled_s()
        if self._reports.stalled_s > LOOP_TIMEOUT_S + 3.0 * self._robot.dt_s:
            self._outlet.send_safe()
            self.get_logger().fatal(f'the control loop has stood still for '
                                    f'{self._reports.stalled_s:.1f} s: safe value sent',
                                    throttle_duration_sec=2.0)
        else:
            self._reports.stalled_s = 0.0

    def _on_crash(self) -> None:
        self.trigger_deactivate()

    # What the control loop calls, in its thread.

    def _account(self, tick: Tick, stamp_ns: int) -> None:
        self._meter.add(tick)
        self._topics.publish(tick, stamp_ns)
        if self._supervisor is not None:
            self._topics.publish_uncertainty(self._supervisor.trust.figure)
        if tick.failure:
            self.get_logger().error(tick.failure, throttle_duration_sec=2.0)
        if tick.verdict.safe:
            self.get_logger().error(f'safe value sent: {tick.verdict.reason}',
                                    throttle_duration_sec=2.0)
        self._pause.set()

    def _warn(self, text: str) -> None:
        self.get_logger().warning(text)

    def _fail(self, text: str) -> None:
        self.get_logger().error(text)

    def _note_crash(self, text: str) -> None:
        self._reports.crash = text
        self.get_logger().fatal(f'control loop stopped, the node deactivates itself:\n{text}')
        self._crashed.trigger()

    def _take_engine(self, engine: Engine) -> None:
        old, self._engine = self._engine, engine
        engine.rollout.set_goal(self._goal.goal)  # it may have changed while the engine was built
        self._reports.facts = engine.facts
        self._tell_of_model()
        if old is not None:
            old.close()
        reload = self._reload  # the executor's thread may drop it now
        if reload is not None:
            reload.swapped()


def main() -> int:
    """Run the controller as a process."""
    return run(MpcController)


if __name__ == '__main__':
    raise SystemExit(main())
