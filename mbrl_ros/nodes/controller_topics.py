"""What people look at while the controller drives: topics beside the commands."""

from collections.abc import Mapping
import json

from diagnostic_msgs.msg import DiagnosticStatus
import numpy as np
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64, Float64MultiArray, MultiArrayDimension, String
from trajectory_msgs.msg import JointTrajectory

from mbrl_ros.control.build import PilotConfig
from mbrl_ros.control.mpc import Decision
from mbrl_ros.control.record import DecisionRecorder
from mbrl_ros.control.tick import Tick
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.core.task import TaskSpec
from mbrl_ros.nodes.diagnostics import ERROR, OK, status, WARN
from mbrl_ros.nodes.messages import LATCHED_QOS
from mbrl_ros.nodes.plan_markers import PlanMarkers
from mbrl_ros.nodes.plan_message import PlanMessage

# Lock-step decides faster than a logger may take it down, and every decision counts.
RECORD_QOS = QoSProfile(depth=100)


class ControllerTopics:
    """
    Publishes what was decided and why; called after the command of a tick is on its way.

    A message that nobody listens to is not even built.

    Parameters
    ----------
    node : Node
        Owner of the publishers.
    robot, task, config : RobotSpec, TaskSpec, PilotConfig
        Names of fields and cost terms, and how plans are made.
    frame : str
        TF frame of ~/plan_markers.

    """

    def __init__(self, node: Node, robot: RobotSpec, task: TaskSpec, config: PilotConfig,
                 frame: str) -> None:
        self._node, self._robot, self._task = node, robot, task
        self._messages = PlanMessage(robot, config.delay_steps)
        self._tick = node.create_publisher(DiagnosticStatus, '~/tick', 50)
        self._plan = node.create_publisher(JointTrajectory, '~/plan', 10)
        self._predicted = node.create_publisher(JointState, '~/predicted_joint_states', 10)
        self._terms = node.create_publisher(Float64MultiArray, '~/cost_terms', 10)
        self._uncertainty = node.create_publisher(Float64, '~/uncertainty', 10)
        self._model_info = node.create_publisher(String, '~/model_info', LATCHED_QOS)
        self._record = node.create_publisher(String, '~/decision', RECORD_QOS)
        self._recorder = DecisionRecorder(robot, task, config)
        self._markers = PlanMarkers(node, robot, task, config, frame)
        self._decision: Decision | None = None

    @property
    def predicted_cost(self) -> float:
        """Of the newest plan; not a number before the first."""
        return self._decision.prediction.cost if self._decision is not None else float('nan')

    def publish(self, tick: Tick, stamp_ns: int) -> None:
        """Publish one tick that answers the observation stamped `stamp_ns`."""
        decision = tick.decision
        if decision is None or decision.tick != tick.index:
            decision = None  # the rest of an older plan is not told again
        self._decision = decision or self._decision
        if self._tick.get_subscription_count():
            self._tick.publish(self._tick_message(tick, decision, stamp_ns))
        if self._record.get_subscription_count():
            for text in self._recorder.encode(tick, stamp_ns):
                self._record.publish(String(data=text))
        if decision is None:
            return
        if self._plan.get_subscription_count():
            self._plan.publish(self._messages.trajectory(decision, stamp_ns))
        if self._predicted.get_subscription_count():
            self._predicted.publish(self._messages.next_joint_state(decision, stamp_ns))
        if self._terms.get_subscription_count():
            # One dimension a term, for its label: data[i] belongs to dim[i].
            message = Float64MultiArray(data=_shares(decision).tolist())
            message.layout.dim = [MultiArrayDimension(label=term.label, size=1, stride=1)
                                  for term in self._task.cost]
            self._terms.publish(message)
        self._markers.offer(decision, stamp_ns)

    def publish_uncertainty(self, value: float) -> None:
        """Publish how far the model cannot be trusted here, in [0, 1]."""
        self._uncertainty.publish(Float64(data=float(value)))

    def publish_model_info(self, info: Mapping[str, object]) -> None:
        """Publish, as JSON, what is known of the model; whoever subscribes later gets it too."""
        self._model_info.publish(String(data=json.dumps(info, default=str)))

    def close(self) -> None:
        """Release the topics, and the last decision, which holds a model."""
        self._decision = None
        self._markers.close()
        for publisher in (self._tick, self._plan, self._predicted, self._terms, self._uncertainty,
                          self._model_info, self._record):
            self._node.destroy_publisher(publisher)

    def _tick_message(self, tick: Tick, decision: Decision | None,
                      stamp_ns: int) -> DiagnosticStatus:
        verdict = tick.verdict
        values: dict[str, object] = {
            'tick': tick.index, 'stamp_ns': stamp_ns, 'missed': tick.missed, 'rung': tick.rung,
            'safe': verdict.safe, 'command': ' '.join(f'{v:.9g}' for v in verdict.command)}
        if tick.finished:
            values['plan_ms'] = ' '.join(f'{plan.plan_s * 1e3:.6g}' for plan in tick.finished)
        if decision is not None:
            values |= {'model': decision.rollout.model_hash[:16], 'spread': decision.spread,
                       'cost': decision.prediction.cost, 'horizon': decision.inputs.horizon}
            values |= {f'cost.{term.label}': float(share)
                       for term, share in zip(self._task.cost, _shares(decision), strict=True)}
        level = ERROR if verdict.safe else WARN if verdict.reason or tick.missed else OK
        return status('tick', self._robot.name, (level, verdict.reason, values))


def _shares(decision: Decision) -> np.ndarray:
    """Return the weighted share of each cost term, shape (T,)."""
    return np.asarray(decision.inputs.weights * decision.prediction.terms)
