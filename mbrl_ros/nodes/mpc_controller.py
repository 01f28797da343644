"""The controller node: drives a robot with a learned model, or collects data from it."""

from collections import Counter, deque
from functools import partial
import gc
from pathlib import Path
from threading import Event, Thread
import traceback
from typing import Any, Literal

from diagnostic_msgs.msg import DiagnosticStatus
import numpy as np
from pydantic import Field
from rclpy.duration import Duration
from rclpy.publisher import Publisher
from trajectory_msgs.msg import JointTrajectory

from mbrl_ros.control import exploration
from mbrl_ros.control.build import build_pilot, Built, PilotConfig
from mbrl_ros.control.inbox import ObservationInbox
from mbrl_ros.control.tick import Tick
from mbrl_ros.core.errors import ObservationError, PlanningError
from mbrl_ros.core.message_path import MessagePath
from mbrl_ros.core.paths import find_model
from mbrl_ros.core.robot import load_robot
from mbrl_ros.core.task import load_task, TaskSpec
from mbrl_ros.nodes import params
from mbrl_ros.nodes.diagnostics import Diagnostics, ERROR, OK, Report, status, WARN
from mbrl_ros.nodes.lifecycle import ManagedNode, NodeParams, run
from mbrl_ros.nodes.messages import (
    build_commands,
    COMMAND_QOS,
    message_class,
    RELIABLE_QOS,
    SENSOR_QOS,
    stamp_ns,
)
from mbrl_ros.nodes.plan_message import PlanMessage
from mbrl_ros.planning import config_class, load_planning, RolloutConfig


class ControllerParams(NodeParams):
    """Parameters of the controller, beside those of its rollouts and its planner or signal."""

    task: str = Field('cartpole_swingup', description='Task spec: a shipped name or a .yaml path')
    mode: Literal['drive', 'collect'] = Field(
        'drive', description='drive: plan with the model; collect: send an exploration signal')
    model: str = Field('', description='A dynamics.onnx, a folder holding one, or a shipped name; '
                                       'empty: the model shipped for the robot')
    signal: str = Field('uniform', description='Exploration signal of the collect mode')
    planner: str = Field('cem', description='Planner: a name in config/planners or a .yaml path')
    provider: str = Field('cpu', description='What runs the model: cpu, cuda or openvino; refused '
                                             'at configure where it is missing')
    precision: str = Field('', description='Of the provider, such as tf32 or bf16; empty: its '
                                           'default')
    lockstep: bool = Field(False, description='Answer every observation with exactly one command, '
                                              'however long the plan takes')
    actuation_delay_steps: int = Field(
        1, ge=0, le=20,
        description='Control periods from an observation to the moment its command acts; the '
                    'state is carried forward through them')
    deadline: float = Field(0.8, gt=0.0, le=1.0,
                            description='Share of the control period a tick waits for its plan')
    allow_slow: bool = Field(False, description='Activate even if the 99th percentile of the time '
                                                'of a plan, measured at configure, exceeds the '
                                                'control period')
    max_spread: float = Field(
        20.0, ge=1.0, le=1e6,
        description="Trust limit: the members' disagreement as a multiple of the held-out data's "
                    '99th percentile')
    seed: int = Field(0, ge=0, description='Seed of every random number')


class MpcController(ManagedNode):
    """
    Lifecycle node: configure loads, checks, compiles and warms up; only active commands the robot.

    The control loop has a thread of its own. Executor callbacks only fill the inbox.
    """

    params: ControllerParams

    def __init__(self) -> None:
        super().__init__('mpc_controller', ControllerParams)
        self._subscriptions_made: list[Any] = []
        self._declared_for: tuple[str, ...] = ()

    def configure(self) -> None:
        """Verify the model against the robot, compile, open the runtime and warm up."""
        p = self.params
        self._robot = load_robot(p.robot)
        self._task = load_task(p.task, self._robot)
        wire = self._robot.observation_topics() | self._robot.action_topics()
        for kind in (*wire.values(), *(g.type for g in self._task.goal if g.type)):
            message_class(kind)  # refused here, before anything is made
        self._built = self._build(p)
        for line in self._built.notes:
            self.get_logger().info(line)
        self._inbox = ObservationInbox(self._robot, lockstep=p.lockstep)
        self._plan_message = PlanMessage(self._robot)
        qos = RELIABLE_QOS if p.lockstep else SENSOR_QOS
        for topic, kind in self._robot.observation_topics().items():
            paths = [MessagePath.parse(f.path) for f in self._robot.observation
                     if f.topic == topic]
            self._subscriptions_made.append(self.create_subscription(
                message_class(kind), topic, partial(self._observe, topic, paths), qos))
        self._goal = self._task.goal_values
        self._subscribe_goal(self._task)
        self._commands: dict[str, Publisher] = {
            topic: self.create_publisher(message_class(kind), topic, COMMAND_QOS)
            for topic, kind in self._robot.action_topics().items()}
        self._tick_publisher = self.create_publisher(DiagnosticStatus, '~/tick', 50)
        self._plan_publisher = self.create_publisher(JointTrajectory, '~/plan', 10)
        self._counts: Counter[str] = Counter()
        self._plan_ms: deque[float] = deque(maxlen=1000)
        self._reported_refused = 0
        self._last: Tick | None = None
        self._predicted_cost = float('nan')
        self._diagnostics = Diagnostics(self, self._robot.name, {
            'planning latency': self._report_latency, 'observation': self._report_observation,
            'model': self._report_model, 'safety': self._report_safety})

    def activate(self) -> None:
        """Start the control loop with empty slots, and without what was planned before."""
        self._refuse_slow_plans()
        self._inbox.forget()
        self._built.pilot.forget()
        self._last = None
        self._counts['crashed'] = 0
        self._stop = Event()
        # The first command, so that what is in flight is known: the pilot assumes safe values.
        self._send(self._robot.safe_value)
        # What configure made lives as long as the node: the collector need not look at it again
        # in the middle of a control period.
        gc.collect()
        gc.freeze()
        self._thread = Thread(target=self._loop, name='control', daemon=True)
        self._thread.start()

    def _refuse_slow_plans(self) -> None:
        p, p99_s, period_s = self.params, self._built.plan_p99_s, self._robot.dt_s
        if p.lockstep or p99_s <= p.deadline * period_s:
            return
        problem = (f'plans take {p99_s * 1e3:.1f} ms (99th percentile at configure); the deadline '
                   f'is {p.deadline * period_s * 1e3:g} ms of the control period of '
                   f'{period_s * 1e3:g} ms: ticks will act on old plans.')
        if p99_s > period_s and not p.allow_slow:
            raise PlanningError(f'{problem} `mbrl-ros bench tune` finds a budget that fits; clean '
                                "up, set it (or 'allow_slow' to true), and configure again.")
        self.get_logger().warning(problem)

    def deactivate(self) -> None:
        """Stop the loop, then leave the safe value as the last command."""
        self._stop.set()
        self._thread.join()
        gc.unfreeze()
        self._send(self._robot.safe_value)
        for publisher in self._commands.values():
            publisher.wait_for_all_acked(Duration(seconds=0.5))

    def cleanup(self) -> None:
        """Release model, topics and threads."""
        self._diagnostics.close()
        for publisher in (*self._commands.values(), self._tick_publisher, self._plan_publisher):
            self.destroy_publisher(publisher)
        for subscription in self._subscriptions_made:
            self.destroy_subscription(subscription)
        self._subscriptions_made.clear()
        self._built.pilot.close()
        if self._built.rollout is not None:
            self._built.rollout.close()
        # The last decision holds the rollout, and that the model: not beside the next one.
        self._last = None
        del self._built

    def _build(self, p: ControllerParams) -> Built:
        planning = load_planning(p.planner)
        if p.mode == 'collect':
            source, model = p.signal, Path()
            kind, defaults = exploration.config_class(source), {}
        else:
            source, model = planning.planner, find_model(p.model or self._robot.name)
            kind, defaults = config_class(source), planning.params
        if (p.mode, p.signal, p.planner) != self._declared_for:  # other parameters, or defaults
            self._undeclare_plugins()
        self._declared_for = (p.mode, p.signal, p.planner)
        prefix = f'{source}.'
        for start, section, values in (('rollout.', RolloutConfig, planning.rollout.model_dump()),
                                       (prefix, kind, defaults)):
            params.declare(self, section, start, values)
            self.params_models[start] = section
        deadline_s = None if p.lockstep else p.deadline * self._robot.dt_s
        return build_pilot(self._robot, self._task, PilotConfig(
            model=model, signal=p.signal if p.mode == 'collect' else '',
            planner=planning.planner, source_config=params.read(self, kind, prefix),
            rollout=params.read(self, RolloutConfig, 'rollout.'), provider=p.provider,
            precision=p.precision,
            delay_steps=p.actuation_delay_steps, deadline_s=deadline_s,
            max_spread=p.max_spread, seed=p.seed))

    def _undeclare_plugins(self) -> None:
        for prefix in [prefix for prefix in self.params_models if prefix]:
            for field in self.params_models.pop(prefix).model_fields:
                if self.has_parameter(prefix + field):
                    self.undeclare_parameter(prefix + field)

    def _subscribe_goal(self, task: TaskSpec) -> None:
        for index, field in enumerate(task.goal):
            if field.topic and field.type and field.path:
                self._subscriptions_made.append(self.create_subscription(
                    message_class(field.type), field.topic,
                    partial(self._take_goal, index, MessagePath.parse(field.path)), RELIABLE_QOS))

    def _observe(self, topic: str, paths: list[MessagePath], message: Any) -> None:
        now = self.get_clock().now().nanoseconds
        stamp = stamp_ns(message, now)
        try:
            values = [path.read(message) for path in paths]
        except ObservationError as error:
            self.get_logger().error(f'{topic}: {error}', throttle_duration_sec=2.0)
            self._inbox.refuse(topic, str(error), stamp)
            return
        self._inbox.put(topic, values, stamp, max(0.0, (now - stamp) * 1e-9))

    def _take_goal(self, index: int, path: MessagePath, message: Any) -> None:
        try:
            value = path.read(message)
        except ObservationError as error:
            self.get_logger().error(f'goal {self._task.goal[index].name}: {error}')
            return
        if not np.isfinite(value):
            self.get_logger().error(f'goal {self._task.goal[index].name}: {value} is refused')
            return
        self._goal = self._goal.copy()
        self._goal[index] = value
        if self._built.rollout is not None:
            self._built.rollout.set_goal(self._goal)

    def _loop(self) -> None:
        silence_s = 1.5 * self._robot.dt_s
        try:
            while not self._stop.is_set():
                observation = self._inbox.wait(silence_s)
                if observation is None:
                    continue
                stamp_ns = self._inbox.stamp_ns  # a newer message may arrive while it plans
                if observation.state is None and not observation.fresh:
                    self._send(self._robot.safe_value)  # nothing was observed yet
                    continue
                tick = self._built.pilot.tick(observation)
                self._send(tick.verdict.command)
                self._account(tick, stamp_ns)
        except Exception:  # whatever it is, the robot must not keep the last command
            self._send(self._robot.safe_value)
            self._counts['crashed'] += 1
            self.get_logger().fatal(f'control loop stopped:\n{traceback.format_exc()}')

    def _send(self, command: np.ndarray) -> None:
        for topic, message in build_commands(self._robot.action, command.tolist()).items():
            self._commands[topic].publish(message)

    def _account(self, tick: Tick, stamp_ns: int) -> None:
        """Count, report and publish one tick; its command is already on its way."""
        self._last = tick
        verdict, decision = tick.verdict, tick.decision
        self._counts['ticks'] += 1
        self._counts['missed'] += tick.missed
        self._counts['safe'] += verdict.safe
        self._counts['slowed'] += bool(verdict.reason) and not verdict.safe
        values: dict[str, object] = {
            'tick': tick.index, 'stamp_ns': stamp_ns, 'missed': tick.missed,
            'safe': verdict.safe, 'command': ' '.join(f'{v:.9g}' for v in verdict.command)}
        if tick.finished:
            self._counts['rejected'] += sum(plan.rejected for plan in tick.finished)
            times_ms = [plan.plan_s * 1e3 for plan in tick.finished]
            self._plan_ms.extend(times_ms)
            values['plan_ms'] = ' '.join(f'{time_ms:.6g}' for time_ms in times_ms)
        if decision is not None and decision.tick == tick.index:  # not the rest of an older plan
            self._predicted_cost = decision.prediction.cost
            values |= {'spread': decision.spread, 'cost': self._predicted_cost}
            shares = self._task.weights * decision.prediction.terms
            values |= {f'cost.{term.label}': float(share)
                       for term, share in zip(self._task.cost, shares, strict=True)}
            self._plan_publisher.publish(self._plan_message.build(
                decision, stamp_ns, self.params.actuation_delay_steps))
        level = ERROR if verdict.safe else WARN if verdict.reason or tick.missed else OK
        self._tick_publisher.publish(
            status('tick', self._robot.name, (level, verdict.reason, values)))
        if verdict.safe:
            self.get_logger().error(f'safe value sent: {verdict.reason}',
                                    throttle_duration_sec=2.0)

    def _report_latency(self) -> Report:
        deadline_ms = self.params.deadline * self._robot.dt_s * 1e3
        counts = {name: self._counts[name] for name in ('ticks', 'missed', 'rejected')}
        plans = np.array(self._plan_ms)
        if not plans.size:
            return OK, 'no plan yet', {**counts, 'deadline_ms': deadline_ms}
        p50, p99 = np.quantile(plans, [0.5, 0.99])
        values = {'p50_ms': float(p50), 'p99_ms': float(p99), 'max_ms': float(plans.max()),
                  'deadline_ms': deadline_ms, **counts}
        share = counts['missed'] / max(1, counts['ticks'])
        message = f'{counts["missed"]} of {counts["ticks"]} plans late, p99 {p99:.1f} ms'
        return (WARN if share > 0.01 else OK), message, values

    def _report_observation(self) -> Report:
        age, refused = self._inbox.age_s(), self._inbox.num_refused
        fresh_refused, self._reported_refused = refused - self._reported_refused, refused
        values = {'age_s': age, 'refused': refused,
                  **{f'{topic}.stale_after_s': limit
                     for topic, limit in self._robot.stale_after_s.items()}}
        if fresh_refused:
            return WARN, f'{fresh_refused} messages refused since the last report', values
        if not np.isfinite(age):
            return (WARN if self.is_active else OK), 'no message yet', values
        problem = self._inbox.problem()
        return (ERROR if problem else OK), problem or 'received', values

    def _report_model(self) -> Report:
        decision = self._last.decision if self._last is not None else None
        values: dict[str, object] = dict(self._built.facts)
        if decision is None:
            return OK, 'idle', values
        values |= {'spread': decision.spread, 'predicted_cost': self._predicted_cost}
        return OK, f'spread {decision.spread:.3g} typical steps', values

    def _report_safety(self) -> Report:
        values = {name: self._counts[name] for name in ('safe', 'slowed', 'crashed')}
        if self._counts['crashed']:
            return ERROR, 'control loop stopped; see the log', values
        if self._last is None or not self.is_active:
            return OK, 'not acting', values
        verdict = self._last.verdict
        level = ERROR if verdict.safe else WARN if verdict.reason else OK
        return level, verdict.reason or 'acting', values


def main() -> int:
    """Run the controller as a process."""
    return run(MpcController)


if __name__ == '__main__':
    raise SystemExit(main())
