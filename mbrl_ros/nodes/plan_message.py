"""The plan as messages about joints: what the model foresees the robot to do."""

from builtin_interfaces.msg import Duration, Time
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from mbrl_ros.control.mpc import Decision
from mbrl_ros.core.message_path import MessagePath
from mbrl_ros.core.robot import RobotSpec


class PlanMessage:
    """
    Builds ~/plan and ~/predicted_joint_states from a decision.

    Joints are the names in `position[...]` and `velocity[...]` paths of the robot spec. A robot
    without such paths gets one "joint" a state field, its predicted value as the position.

    Parameters
    ----------
    robot : RobotSpec
        Its observation fields.
    delay_steps : int
        Control periods from an observation to the moment its command acts.

    """

    def __init__(self, robot: RobotSpec, delay_steps: int) -> None:
        position, velocity = {}, {}
        for index, field in enumerate(robot.observation):
            path = MessagePath.parse(field.path)
            if path.attributes == ('position',) and isinstance(path.key, str):
                position[path.key] = index
            elif path.attributes == ('velocity',) and isinstance(path.key, str):
                velocity[path.key] = index
        if not position:
            position = {name: i for i, name in enumerate(robot.state_names)}
        self._names = list(position)
        self._position = list(position.values())
        complete = all(name in velocity for name in self._names)
        self._velocity = [velocity[name] for name in self._names] if complete else []
        self._dt_ns, self._delay_steps = robot.dt_ns, delay_steps

    def trajectory(self, decision: Decision, stamp_ns: int) -> JointTrajectory:
        """Return the mean predicted path; time counts from the observation it was planned from."""
        message = JointTrajectory(joint_names=self._names)
        message.header.stamp = _time(stamp_ns)
        mean = decision.prediction.states.mean(axis=1).astype(float)
        for step, state in enumerate(mean):
            after_ns = (self._delay_steps + step + 1) * self._dt_ns
            message.points.append(JointTrajectoryPoint(
                positions=state[self._position].tolist(),
                velocities=state[self._velocity].tolist(),
                time_from_start=Duration(sec=after_ns // 10**9, nanosec=after_ns % 10**9)))
        return message

    def next_joint_state(self, decision: Decision, stamp_ns: int) -> JointState:
        """Return the mean state a control period after the command acts, with that stamp."""
        state = decision.prediction.states[0].mean(axis=0).astype(float)
        message = JointState(name=self._names, position=state[self._position].tolist(),
                             velocity=state[self._velocity].tolist())
        message.header.stamp = _time(stamp_ns + (self._delay_steps + 1) * self._dt_ns)
        return message


def _time(stamp_ns: int) -> Time:
    return Time(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
