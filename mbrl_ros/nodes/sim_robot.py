"""The simulated robot as a node: the topics of the real one, in real time or in lock-step."""

from functools import partial
import time
from typing import Any

from builtin_interfaces.msg import Time
import numpy as np
from pydantic import Field
from rclpy.serialization import serialize_message
from rosgraph_msgs.msg import Clock
from std_srvs.srv import SetBool, Trigger

from mbrl_ros.core.errors import MbrlError, SpecError
from mbrl_ros.core.robot import load_robot
from mbrl_ros.nodes.chore import Chore
from mbrl_ros.nodes.diagnostics import Diagnostics, ERROR, OK, Report, REPORT_PERIOD_S, WARN
from mbrl_ros.nodes.lifecycle import ManagedNode, NodeParams, run
from mbrl_ros.nodes.messages import fill, message_class, RELIABLE_QOS
from mbrl_ros.nodes.receiver import Apart, Receiver
from mbrl_ros.sim.loop import SimLoop, WARN_AFTER_S
from mbrl_ros.sim.mujoco_robot import MujocoRobot, Readings


class SimParams(NodeParams):
    """Parameters of the simulated robot."""

    seed: int = Field(0, ge=0, le=2**31 - 1,
                      description='Seed of the initial states and of the observation noise')
    lockstep: bool = Field(False, description='Wait for the command that answers each observation '
                                              'and publish /clock')
    speed_factor: float = Field(1.0, ge=0.01, le=100.0,
                                description='Simulated seconds a second, real time only; other '
                                            'than 1: publish /clock')
    start_paused: bool = Field(False, description='Activate paused')
    pause_after_steps: int = Field(0, ge=0, le=10_000_000,
                                   description='Control periods after which a run pauses itself; '
                                               '0: never')
    actuation_delay_steps: int = Field(-1, ge=-1, le=100,
                                       description='Control periods that commands act late, '
                                                   'beyond the one of real time; -1: as the robot '
                                                   'spec says')
    observation_noise_std: float = Field(0.0, ge=0.0, le=10.0,
                                         description='Noise on observed positions and velocities, '
                                                     'in their units')
    mass_scale: float = Field(1.0, ge=0.01, le=100.0, description='Factor on all masses')
    friction_scale: float = Field(1.0, ge=0.0, le=100.0,
                                  description='Factor on joint damping and all friction')
    keyframe: str = Field('', description='Keyframe to start from; empty: that of the robot spec')
    watchdog_periods: int = Field(5, ge=1, le=1000,
                                  description='Control periods without a command after which the '
                                              'safe value acts, real time only')


class SimRobot(ManagedNode):
    """Lifecycle node `sim_robot`: ROS on one side, SimLoop on the other."""

    params: SimParams

    def __init__(self) -> None:
        super().__init__('sim_robot', SimParams)

    def configure(self) -> None:
        """Build the robot, its topics and its services."""
        p = self.params
        self._spec = spec = load_robot(p.robot)
        if p.lockstep and p.speed_factor != 1.0:
            raise SpecError(f'speed_factor {p.speed_factor:g} has no meaning in lock-step: leave '
                            'it at 1, or set lockstep to false')
        robot = MujocoRobot(
            spec, mass_scale=p.mass_scale, friction_scale=p.friction_scale, keyframe=p.keyframe,
            observation_noise_std=p.observation_noise_std, noise_seed=p.seed)
        delay_steps = p.actuation_delay_steps if p.actuation_delay_steps >= 0 \
            else spec.actuation_delay_steps
        self._kinds = spec.observation_topics()
        self._loop = SimLoop(
            robot, self, np.random.default_rng(p.seed), lockstep=p.lockstep,
            speed_factor=p.speed_factor, actuation_delay_steps=delay_steps,
            watchdog_periods=p.watchdog_periods)
        self._last_report = (time.monotonic(), 0, 0)
        self._observers: dict[str, Any] = {
            topic: self.create_lifecycle_publisher(message_class(kind), topic, RELIABLE_QOS)
            for topic, kind in self._kinds.items()}
        self._clocks = [self.create_publisher(Clock, '/clock', RELIABLE_QOS)] \
            if self._loop.is_time_simulated else []
        apart = Apart()
        self._commands = [
            self.create_subscription(message_class(type_name), topic,
                                     partial(self._on_command, topic), RELIABLE_QOS,
                                     callback_group=apart)
            for topic, type_name in spec.action_topics().items()]
        self._receiver = Receiver(self, self._commands, self.fail)
        self._world_services = [
            self.create_service(Trigger, '~/reset_world', self._on_reset_world),
            self.create_service(SetBool, '~/set_pause', self._on_set_pause),
            self.create_service(Trigger, '~/step', self._on_step)]
        self._diagnostics = Diagnostics(self, spec.name, {'loop': self._report_loop,
                                                          'commands': self._report_commands})
        self._reporting = Chore(REPORT_PERIOD_S, self._diagnostics.publish, self.fail,
                                self._loop.pause)
        self.get_logger().info(f"simulating '{spec.name}' at {spec.control_rate_hz:g} Hz, "
                               f'{"lock-step" if p.lockstep else "real time"}, seed {p.seed}')

    def activate(self) -> None:
        """Start the loop."""
        self._loop.set_paused(self.params.start_paused, self.params.pause_after_steps)
        self._loop.start()

    def deactivate(self) -> None:
        """Stop the loop; the world stands still."""
        self._loop.stop()

    def cleanup(self) -> None:
        """Release topics, services and the robot."""
        self._receiver.close()
        self._reporting.close()
        self._diagnostics.close(self.ending)
        for publisher in (*self._observers.values(), *self._clocks):
            self.destroy_publisher(publisher)
        for subscription in self._commands:
            self.destroy_subscription(subscription)
        for service in self._world_services:
            self.destroy_service(service)

    # What the loop calls, in its thread.

    def publish_clock(self, stamp_ns: int) -> None:
        """Publish /clock."""
        for publisher in self._clocks:
            publisher.publish(Clock(clock=_time(stamp_ns)))

    def build_observation(self, readings: Readings) -> dict[str, Any]:
        """Return the messages of some topics, without their stamp."""
        return {topic: fill(message_class(self._kinds[topic])(), reading)
                for topic, reading in readings.items()}

    def rehearse(self, messages: dict[str, Any]) -> None:
        """Go through the messages as publishing does."""
        for message in messages.values():
            serialize_message(message)

    def publish_observation(self, stamp_ns: int, messages: dict[str, Any]) -> None:
        """Publish what some topics report at one moment."""
        # The first topic of the spec last: it sets the pace, and whoever answers it knows the
        # others by then.
        for topic, message in reversed(messages.items()):
            message.header.stamp = _time(stamp_ns)
            self._observers[topic].publish(message)

    def has_peers(self) -> bool:
        """Whether every topic of the robot is matched."""
        return all(p.get_subscription_count() for p in self._observers.values()) \
            and all(s.get_publisher_count() for s in self._commands)

    def warn(self, text: str) -> None:
        """Log a warning."""
        self.get_logger().warning(text)

    def fail(self, text: str) -> None:
        """Log an error."""
        self.get_logger().error(text)

    # What the receiver calls, in its thread.

    def _on_command(self, topic: str, message: Any, info: dict[str, int]) -> None:
        values = None
        try:
            values = self._loop.inbox.parse(topic, message)
        except MbrlError as error:
            self.get_logger().error(f'{topic}: command refused, the safe value acts: {error}',
                                    throttle_duration_sec=1.0)
        self._loop.put_command(topic, info['source_timestamp'], values)

    # Callbacks, in the executor's thread.

    def _on_reset_world(self, request: Trigger.Request,
                        response: Trigger.Response) -> Trigger.Response:
        self._loop.reset()
        response.success, response.message = True, f'episode {self._loop.num_episodes}'
        return response

    def _on_set_pause(self, request: SetBool.Request,
                      response: SetBool.Response) -> SetBool.Response:
        if not self.is_active:
            response.message = 'the node is not active'
            return response
        self._loop.set_paused(request.data, self.params.pause_after_steps)
        response.success, response.message = True, 'paused' if request.data else 'running'
        return response

    def _on_step(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if not self.is_active or not self._loop.is_paused:
            response.message = 'not paused: call ~/set_pause first' if self.is_active \
                else 'the node is not active'
            return response
        self._loop.set_paused(False, 1)
        response.success, response.message = True, 'one control period'
        return response

    # Diagnostics.

    def _report_loop(self) -> Report:
        loop, now_s = self._loop, time.monotonic()
        then_s, steps, shifts = self._last_report
        rate_hz = (loop.num_steps - steps) / max(now_s - then_s, 1e-9)
        waiting_for, waiting_s = loop.waiting()
        level, state = OK, 'running'
        if loop.failure:
            level, state = ERROR, f'failed: {loop.failure}'
        elif not self.is_active:
            state = 'inactive'
        elif loop.is_paused:
            state = 'paused'
        elif waiting_for and waiting_s > 0.5:
            level = WARN if waiting_s > WARN_AFTER_S else OK
            state = f'waiting for {waiting_for}'
        elif loop.grid.num_shifts > shifts:
            level, state = WARN, 'running, cannot keep up'
        self._last_report = (now_s, loop.num_steps, loop.grid.num_shifts)
        return level, state, {
            'rate_hz': rate_hz, 'steps': loop.num_steps, 'episodes': loop.num_episodes,
            'late_ticks': loop.grid.num_shifts, 'stamp_s': loop.grid.stamp_ns * 1e-9}

    def _report_commands(self) -> Report:
        loop = self._loop
        bad = loop.num_rejected + loop.num_trips
        return (WARN if bad else OK), ('commands refused or missing' if bad else 'ok'), {
            'received': loop.num_received, 'rejected': loop.num_rejected,
            'watchdog_trips': loop.num_trips, 'clipped_steps': loop.robot.num_clipped}


def _time(stamp_ns: int) -> Time:
    return Time(sec=stamp_ns // 1_000_000_000, nanosec=stamp_ns % 1_000_000_000)


def main() -> int:
    """Run the node as a process."""
    return run(SimRobot)


if __name__ == '__main__':
    raise SystemExit(main())
