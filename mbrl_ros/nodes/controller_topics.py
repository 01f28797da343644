"""What people look at while the controller drives: topics beside the commands."""

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.node import Node
from trajectory_msgs.msg import JointTrajectory

from mbrl_ros.control.tick import Tick
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.core.task import TaskSpec
from mbrl_ros.nodes.diagnostics import ERROR, OK, status, WARN
from mbrl_ros.nodes.plan_message import PlanMessage


class ControllerTopics:
    """
    Publishes what was decided and why; called after the command of a tick is on its way.

    Parameters
    ----------
    node : Node
        Owner of the publishers.
    robot, task : RobotSpec, TaskSpec
        Names of fields and cost terms.
    delay_steps : int
        Control periods from an observation to the moment its command acts.

    Attributes
    ----------
    predicted_cost : float
        Of the newest plan; not a number before the first.

    """

    def __init__(self, node: Node, robot: RobotSpec, task: TaskSpec, delay_steps: int) -> None:
        self._node, self._robot, self._task, self._delay_steps = node, robot, task, delay_steps
        self._plan_message = PlanMessage(robot)
        self._tick = node.create_publisher(DiagnosticStatus, '~/tick', 50)
        self._plan = node.create_publisher(JointTrajectory, '~/plan', 10)
        self.predicted_cost = float('nan')

    def publish(self, tick: Tick, stamp_ns: int) -> None:
        """Publish one tick that answers the observation stamped `stamp_ns`."""
        verdict, decision = tick.verdict, tick.decision
        values: dict[str, object] = {
            'tick': tick.index, 'stamp_ns': stamp_ns, 'missed': tick.missed, 'rung': tick.rung,
            'safe': verdict.safe, 'command': ' '.join(f'{v:.9g}' for v in verdict.command)}
        if tick.finished:
            values['plan_ms'] = ' '.join(f'{plan.plan_s * 1e3:.6g}' for plan in tick.finished)
        if decision is not None and decision.tick == tick.index:  # not the rest of an older plan
            self.predicted_cost = decision.prediction.cost
            values |= {'model': decision.rollout.model_hash[:16], 'spread': decision.spread,
                       'cost': self.predicted_cost}
            shares = decision.inputs.weights * decision.prediction.terms
            values |= {f'cost.{term.label}': float(share)
                       for term, share in zip(self._task.cost, shares, strict=True)}
            self._plan.publish(self._plan_message.build(decision, stamp_ns, self._delay_steps))
        level = ERROR if verdict.safe else WARN if verdict.reason or tick.missed else OK
        self._tick.publish(status('tick', self._robot.name, (level, verdict.reason, values)))

    def close(self) -> None:
        """Release the topics."""
        for publisher in (self._tick, self._plan):
            self._node.destroy_publisher(publisher)
