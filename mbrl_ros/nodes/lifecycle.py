"""The lifecycle node under all of ours, and the loop that runs one as a process."""

from collections.abc import Callable
from queue import SimpleQueue
import signal
from threading import Thread
import traceback

from pydantic import Field
from rcl_interfaces.msg import SetParametersResult
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.logging import get_logger
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions

from mbrl_ros.core.errors import MbrlError, SpecError
from mbrl_ros.core.yaml_file import Strict
from mbrl_ros.nodes import params


class NodeParams(Strict):
    """Parameters that every node has."""

    robot: str = Field('cartpole', description='Robot spec: a shipped name or a .yaml path')
    autostart: bool = Field(False, description='Configure and activate without being asked')
    autoconfigure: bool = Field(False, description='Configure without being asked')


class ManagedNode(LifecycleNode):
    """
    A lifecycle node whose transitions say why they fail.

    Subclasses override `configure`, `activate`, `deactivate` and `cleanup`. An MbrlError raised
    there is logged as it is and fails the transition; any other exception is logged with its
    traceback (rclpy alone would swallow both). Parameters are those of pydantic models; they are
    read at configure, and a change is refused while the node is configured.

    Attributes
    ----------
    params_models : dict of str to type of Strict
        Models of the declared parameters by their prefix; the node's own has the prefix ''.
    live_params : frozenset of str
        Parameters of the node's own that may be set while it is configured.
    ending : str
        Why the node goes, once it is cleaned up: what /diagnostics says last.

    """

    live_params: frozenset[str] = frozenset()

    def __init__(self, name: str, model: type[NodeParams]) -> None:
        super().__init__(name)
        self.params_model = model
        self.params_models: dict[str, type[Strict]] = {'': model}
        self.params: NodeParams
        self.refusal, self.ending = '', 'the node was cleaned up'
        self.is_configured = False
        self.is_active = False
        params.declare(self, model)
        self.add_on_set_parameters_callback(self._check_parameters)

    def configure(self) -> None:
        """Load, check and allocate, with `self.params` freshly read."""

    def activate(self) -> None:
        """Start to act."""

    def deactivate(self) -> None:
        """Stop acting; must leave the robot safe."""

    def cleanup(self) -> None:
        """Release what configure made."""

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Read the parameters and configure."""
        def work() -> None:
            self.params = params.read(self, self.params_model)
            self.configure()
            self.is_configured = True
        return self._guard('configure', work)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Activate, and let the lifecycle publishers publish."""
        def work() -> None:
            super(ManagedNode, self).on_activate(state)
            self.activate()
            self.is_active = True
        return self._guard('activate', work)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Deactivate; publishers stop last, so that a safe value can still go out."""
        def work() -> None:
            self.is_active = False
            self.deactivate()
            super(ManagedNode, self).on_deactivate(state)
        return self._guard('deactivate', work)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything."""
        def work() -> None:
            self.is_configured = False
            self.cleanup()
        return self._guard('cleanup', work)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Leave whatever state the node is in, the robot safe."""
        return self._guard('shut down', self.leave)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Fall back to unconfigured, the robot safe."""
        return self._guard('recover', self.leave)

    def leave(self) -> None:
        """Deactivate and clean up, as far as the node has come."""
        try:
            if self.is_active:
                self.is_active = False
                self.deactivate()
        finally:
            if self.is_configured:
                self.is_configured = False
                self.cleanup()

    def _guard(self, verb: str, work: Callable[[], None]) -> TransitionCallbackReturn:
        try:
            work()
        except MbrlError as error:
            self.refusal = str(error)
            self.get_logger().error(f'cannot {verb}: {error}')
            return TransitionCallbackReturn.FAILURE
        except Exception as error:  # rclpy would swallow it silently
            self.refusal = f'{type(error).__name__}: {error}'
            self.get_logger().error(f'cannot {verb}:\n{traceback.format_exc()}')
            return TransitionCallbackReturn.ERROR
        self.refusal = ''
        return TransitionCallbackReturn.SUCCESS

    def _check_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        for prefix, model in self.params_models.items():
            names = [prefix + field for field in model.model_fields]
            ours = {p.name: p.value for p in changes if p.name in names}
            fixed = sorted(ours.keys() - self.live_params)
            if fixed and self.is_configured:
                return SetParametersResult(
                    successful=False,
                    reason=f'{fixed[0]} is read at configure: clean up the node, then '
                           'set it')
            try:
                if ours and all(self.has_parameter(name) for name in names):
                    params.read(self, model, prefix, ours)
            except SpecError as error:
                return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)


def run(factory: Callable[[], ManagedNode]) -> int:
    """
    Run one node as a process until it is told to end, by Ctrl-C or by a terminal that closes.

    Signals are ours, not rclpy's: rclpy would close the context first, and the safe value could no
    longer be published. They wake the main thread; an executor that had to look for them would
    have the interpreter for a millisecond each time, while the robot waits.
    """
    ends: SimpleQueue[int | BaseException] = SimpleQueue()  # signals, or what a callback raised
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, lambda received, frame: ends.put(received))
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = factory()
    except MbrlError as error:
        get_logger('mbrl_ros').fatal(str(error))
        rclpy.shutdown()
        return 1
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    status = 0
    try:
        steps = []
        if node.get_parameter('autostart').value:
            steps = [node.trigger_configure, node.trigger_activate]
        elif node.get_parameter('autoconfigure').value:
            steps = [node.trigger_configure]
        status = int(any(ends.empty() and step() != TransitionCallbackReturn.SUCCESS
                         for step in steps))
        end = None if status else _spin(executor, ends)
        if isinstance(end, BaseException):
            raise end
        if end is not None:
            node.ending = f'the node ends: {signal.Signals(end).name}'
            node.get_logger().info(node.ending)
    finally:
        node.leave()
        node.destroy_node()
        rclpy.shutdown()
    return status


def _spin(executor: SingleThreadedExecutor, ends: SimpleQueue[int | BaseException]
          ) -> int | BaseException:
    """Spin on a thread until there is an end; return it."""
    is_ending = False

    def spin() -> None:
        try:
            while not is_ending:
                executor.spin_once()
        except BaseException as error:  # raised again where it ends the process
            ends.put(error)

    thread = Thread(target=spin, name='executor')
    thread.start()
    end = ends.get()
    is_ending = True
    executor.create_task(lambda: None)  # a round ends with something done, not with a wake
    thread.join()
    return end
