"""
Start the nodes as processes and operate them: what a person would do with the ros2 command.

`mbrl-ros demo` is such an operator; so are the tests that close the loop over DDS.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
import subprocess
from threading import Condition, Thread
import time
from types import TracebackType
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import SetParameters
import rclpy
from rclpy.client import Client
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions
from std_srvs.srv import SetBool, Trigger

from mbrl_ros.core.errors import MbrlError
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.nodes.messages import message_class, RELIABLE_QOS
from mbrl_ros.nodes.processes import end
from mbrl_ros.nodes.table import GROUPS, NodeOptions

START_TIMEOUT_S = 30.0
CALL_TIMEOUT_S = 20.0
SETTLE_S = 0.5
ANSWER_S = 1.0
POLL_S = 0.05
LEAVING_S = 5.0
GOAL_LISTENERS = 2  # controller and logger
# Every message counts, and lock-step sends them faster than one thread of Python takes them.
COUNTING_QOS = QoSProfile(depth=10_000)


class OperationError(MbrlError):
    """A node did not do what it was asked to; the text ends with its log."""


class Operator:
    """
    Runs the simulated robot, the logger and the controller, each in a process of its own.

    Parameters
    ----------
    robot : RobotSpec
        Whose observations are counted.
    options : NodeOptions
        What all nodes share.
    extra : mapping of str to mapping
        Parameters of single nodes, by node name.
    logs : Path
        Folder for one log file a node.

    Attributes
    ----------
    processes : dict of str to Popen
        Of the nodes, by node name.
    ticks : list of dict
        What `~/tick` of the controller told since `start_counting`.

    """

    def __init__(self, robot: RobotSpec, options: NodeOptions,
                 extra: Mapping[str, Mapping[str, Any]], logs: Path) -> None:
        self._robot, self._options = robot, options
        self._extra, self._logs = extra, logs
        self._entries = GROUPS['demo']
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._changed = Condition()
        self._num_observations = 0
        self.ticks: list[dict[str, str]] = []
        # Ctrl-C is Python's: rclpy would close the context under a call that waits.
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        self._node = rclpy.create_node('mbrl_operator', namespace=options.namespace or None)
        pacer = robot.observation[0]
        self._node.create_subscription(message_class(pacer.type), pacer.topic,
                                       self._count, COUNTING_QOS)
        self._told = self._node.create_subscription(DiagnosticStatus, 'mpc_controller/tick',
                                                    self._on_tick, COUNTING_QOS)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._thread = Thread(target=self._spin, name='operator', daemon=True)

    def __enter__(self) -> 'Operator':
        """Start the processes and wait until each can be spoken to."""
        self._thread.start()
        self._refuse_company()
        self._logs.mkdir(parents=True, exist_ok=True)
        try:
            for entry in self._entries:
                command = entry.command(self._options, self._extra.get(entry.name))
                with (self._logs / f'{entry.name}.log').open('wb') as log:
                    self.processes[entry.name] = subprocess.Popen(
                        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                        start_new_session=True)
            for entry in self._entries:
                self._wait_until_up(entry.name)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """Stop the nodes: the controller first, so that it leaves the robot safe."""
        self.close()

    def _refuse_company(self) -> None:
        """Refuse to start beside a robot or a controller that uses the same topics."""
        time.sleep(SETTLE_S)
        deadline_s = time.monotonic() + LEAVING_S
        for topic in (*self._robot.observation_topics(), *self._robot.action_topics()):
            # Whoever has just left is still in the graph for a moment.
            while (names := self._others_on(topic)) and time.monotonic() < deadline_s:
                time.sleep(0.1)
            if names:
                self.close()
                raise OperationError(
                    f"somebody else is on topic '{topic}': {', '.join(names)}. Stop it, or choose "
                    'another ROS_DOMAIN_ID.')

    def _others_on(self, topic: str) -> list[str]:
        others = self._node.get_publishers_info_by_topic(topic) \
            + self._node.get_subscriptions_info_by_topic(topic)
        return sorted({info.node_name for info in others} - {self._node.get_name()})

    def close(self) -> None:
        """Interrupt each process, wait for it, and leave DDS."""
        for name in reversed(list(self.processes)):
            end(self.processes.pop(name))
        rclpy.try_shutdown()
        if self._thread.is_alive():
            self._thread.join()

    def configure(self, node: str) -> None:
        """Configure a lifecycle node."""
        self._transition(node, 'configure', Transition.TRANSITION_CONFIGURE)

    def activate(self, node: str) -> None:
        """Activate a lifecycle node."""
        self._transition(node, 'activate', Transition.TRANSITION_ACTIVATE)

    def deactivate(self, node: str) -> None:
        """Deactivate a lifecycle node."""
        self._transition(node, 'deactivate', Transition.TRANSITION_DEACTIVATE)

    def cleanup(self, node: str) -> None:
        """Clean up a lifecycle node."""
        self._transition(node, 'clean up', Transition.TRANSITION_CLEANUP)

    def prepare(self, parameters: Mapping[str, Any]) -> None:
        """
        Configure the controller, anew if it is, and wait until all nodes have found each other.

        Parameters
        ----------
        parameters : mapping of str to value
            Of the controller, set before.

        """
        if self.state('mpc_controller') == State.PRIMARY_STATE_INACTIVE:
            self.cleanup('mpc_controller')
            # Its topics must not be taken for the new ones.
            self._wait(lambda: not self._told.get_publisher_count(), CALL_TIMEOUT_S,
                       'the topics of the controller that was cleaned up stay')
        self.set_parameters('mpc_controller', parameters)
        self.configure('mpc_controller')
        # Observations go to logger, controller and operator; commands to robot and logger.
        wanted = {**dict.fromkeys(self._robot.observation_topics(), 2),
                  **dict.fromkeys(self._robot.action_topics(), 2)}
        wanted[self._robot.observation[0].topic] = 3
        self._wait(lambda: self._told.get_publisher_count() > 0 and all(
            self._node.count_publishers(topic) and self._node.count_subscribers(topic) >= count
            for topic, count in wanted.items()), START_TIMEOUT_S,
            f'the nodes did not find each other in {START_TIMEOUT_S:g} s. Try: mbrl-ros doctor')
        # The robot hears of the controller's ears about when we hear of them. Who listens to the
        # controller is its own care: it sees its first command acknowledged.
        time.sleep(SETTLE_S)

    def record_run(self, steps: int, silence_s: float, *, goal: Mapping[str, Any] | None = None,
                   progress: Callable[[int], None] | None = None) -> Path:
        """
        Let the prepared controller drive the paused robot from a new start, and record that.

        Parameters
        ----------
        steps : int
            Control periods after which the robot pauses itself (its `pause_after_steps`).
        silence_s : float
            How long the robot may say nothing.
        goal : mapping of str to message, optional
            What to send to the goal topics before.
        progress : callable, optional
            Takes the number of observations so far.

        Returns
        -------
        Path
            The bag.

        Raises
        ------
        OperationError
            If a node refuses, dies, or falls silent.

        """
        bag = Path(self.switch('data_logger', 'record', on=True))
        for topic, message in (goal or {}).items():
            self._send_goal(topic, message)
        self.run(steps, silence_s, progress)
        self.switch('data_logger', 'record', on=False)
        return bag

    def run(self, steps: int, silence_s: float,
            progress: Callable[[int], None] | None = None) -> None:
        """Let the prepared controller drive, as `record_run` does, whoever records it."""
        self.trigger('sim_robot', 'reset_world')
        self.activate('mpc_controller')
        self.start_counting()
        self.switch('sim_robot', 'set_pause', on=False)
        self._wait_for_observations(steps + 1, silence_s, progress)
        self.deactivate('mpc_controller')

    def state(self, node: str) -> int:
        """Return the lifecycle state of a node (constants of State)."""
        return int(self._call(node, 'get_state', GetState, GetState.Request()).current_state.id)

    def set_parameters(self, node: str, values: Mapping[str, Any]) -> None:
        """Set parameters of a node; a refusal is raised with the node's own reason."""
        request = SetParameters.Request(parameters=[
            Parameter(name, value=value).to_parameter_msg() for name, value in values.items()])
        for result in self._call(node, 'set_parameters', SetParameters, request).results:
            if not result.successful:
                raise OperationError(f'{node} refused a parameter: {result.reason}')

    def trigger(self, node: str, service: str) -> str:
        """Call a Trigger service and return its message."""
        return self._checked(node, service, Trigger, Trigger.Request())

    def switch(self, node: str, service: str, on: bool) -> str:
        """Call a SetBool service and return its message."""
        return self._checked(node, service, SetBool, SetBool.Request(data=on))

    def start_counting(self) -> None:
        """Forget the observations and ticks seen so far."""
        with self._changed:
            self._num_observations = 0
            self.ticks = []

    def _spin(self) -> None:
        with suppress(ExternalShutdownException):
            self._executor.spin()

    def _count(self, _message: Any) -> None:
        with self._changed:
            self._num_observations += 1
            self._changed.notify_all()

    def _on_tick(self, message: DiagnosticStatus) -> None:
        values = {item.key: item.value for item in message.values}
        with self._changed:
            self.ticks.append(values | {'reason': message.message})
            self._changed.notify_all()

    def _send_goal(self, topic: str, message: Any) -> None:
        """Publish a goal to controller and logger, and see that it arrived."""
        publisher = self._node.create_publisher(type(message), topic, RELIABLE_QOS)
        self._wait(lambda: publisher.get_subscription_count() >= GOAL_LISTENERS, CALL_TIMEOUT_S,
                   f"nobody takes the goal from topic '{topic}'. Does the task of the controller "
                   'name it?')
        publisher.publish(message)
        if not publisher.wait_for_all_acked(Duration(seconds=CALL_TIMEOUT_S)):
            raise OperationError(f"the goal on topic '{topic}' was not acknowledged in "
                                 f'{CALL_TIMEOUT_S:g} s')
        self._node.destroy_publisher(publisher)

    def _wait_for_observations(self, count: int, silence_s: float,
                               progress: Callable[[int], None] | None) -> None:
        """
        Wait until the robot has published `count` observations, and the controller's answers.

        An answer that does not come soon is not waited for: its observation, or the tick that
        tells of it, may be lost.
        """
        seen, last_s = 0, time.monotonic()
        while seen < count:
            with self._changed:
                self._changed.wait(0.2)
                now_seen = self._num_observations
            if now_seen > seen:
                seen, last_s = now_seen, time.monotonic()
            elif time.monotonic() - last_s > silence_s:
                raise OperationError(
                    f'no observation for {silence_s:g} s after {seen} of {count}.'
                    + self._log('sim_robot'))
            if progress is not None:
                progress(seen)
            self._check_alive()
        with self._changed:
            self._changed.wait_for(
                lambda: len({tick['stamp_ns'] for tick in self.ticks}) >= count, ANSWER_S)

    def _wait_until_up(self, node: str) -> None:
        client: Client[Any, Any] = self._node.create_client(GetState, f'{node}/get_state')
        wanted = State.PRIMARY_STATE_ACTIVE if self._autostarts(node) \
            else State.PRIMARY_STATE_UNCONFIGURED
        self._wait(lambda: client.wait_for_service(0.1) and self.state(node) == wanted,
                   START_TIMEOUT_S, f'{node} did not come up in {START_TIMEOUT_S:g} s.', node)
        self._node.destroy_client(client)

    def _wait(self, is_done: Callable[[], bool], timeout_s: float, problem: str,
              node: str = '') -> None:
        """Wait until something is so, as long as all nodes live; or tell, with a node's log."""
        deadline_s = time.monotonic() + timeout_s
        while not is_done():
            self._check_alive()
            if time.monotonic() > deadline_s:
                raise OperationError(problem + (self._log(node) if node else ''))
            time.sleep(POLL_S)

    def _autostarts(self, node: str) -> bool:
        return bool(self._extra.get(node, {}).get('autostart', True))

    def _transition(self, node: str, verb: str, number: int) -> None:
        request = ChangeState.Request(transition=Transition(id=number))
        if not self._call(node, 'change_state', ChangeState, request).success:
            raise OperationError(f'{node} refused to {verb}.{self._log(node)}')

    def _checked(self, node: str, service: str, kind: Any, request: Any) -> str:
        response = self._call(node, service, kind, request)
        if not response.success:
            raise OperationError(f'{node}/{service} refused: {response.message}')
        return str(response.message)

    def _call(self, node: str, service: str, kind: Any, request: Any) -> Any:
        client: Client[Any, Any] = self._node.create_client(kind, f'{node}/{service}')
        try:
            if not client.wait_for_service(CALL_TIMEOUT_S):
                raise OperationError(f'{node} offers no service {service}.{self._log(node)}')
            future = client.call_async(request)
            with self._changed:
                future.add_done_callback(self._wake)
                self._changed.wait_for(future.done, CALL_TIMEOUT_S)
            if not future.done():
                raise OperationError(f'{node}/{service} did not answer in {CALL_TIMEOUT_S:g} s.'
                                     + self._log(node))
            return future.result()
        finally:
            self._node.destroy_client(client)

    def _wake(self, _future: Any) -> None:
        with self._changed:
            self._changed.notify_all()

    def _check_alive(self) -> None:
        for name, process in self.processes.items():
            if process.poll() is not None:
                raise OperationError(
                    f'{name} ended with status {process.returncode}.{self._log(name)}')

    def _log(self, node: str) -> str:
        path = self._logs / f'{node}.log'
        lines = path.read_text(errors='replace').splitlines()[-15:] if path.exists() else []
        return f'\nEnd of {path}:\n  ' + '\n  '.join(lines)
