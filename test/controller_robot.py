"""The robot's side of a controller under test: what it says to a robot, and what one answers."""

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64, Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

COMMANDS = 'forward_command_controller/commands'
DT_NS = 40_000_000
STATE = (0.1, 3.0, -0.2, 0.4)  # slider and hinge position, slider and hinge velocity
JOINTS = ('slider', 'hinge')


class Robot(Node):
    """What the controller sees of a robot; keeps all that the controller says."""

    def __init__(self):
        super().__init__('robot')
        self.stamp_ns = 0
        self.sent, self.ticks, self.plans, self.statuses, self.reports = [], [], [], {}, []
        self.states = self.create_publisher(JointState, 'joint_states', 10)
        self.goal = self.create_publisher(Float64, 'goal', 10)
        self.create_subscription(
            Float64MultiArray, COMMANDS, lambda m: self.sent.append(m.data[0]), 100)
        self.create_subscription(
            DiagnosticStatus, 'mpc_controller/tick', self.ticks.append, 100)
        self.create_subscription(JointTrajectory, 'mpc_controller/plan', self.plans.append, 100)
        self.create_subscription(DiagnosticArray, '/diagnostics', self.on_diagnostics, 100)
        self.change_client = self.create_client(ChangeState, '/mpc_controller/change_state')
        self.state_client = self.create_client(GetState, '/mpc_controller/get_state')

    def on_diagnostics(self, message):
        self.reports.append(message.header.stamp.sec + message.header.stamp.nanosec * 1e-9)
        self.statuses |= {status.name.removeprefix('mpc_controller: '): status
                          for status in message.status}

    def observe(self, state=STATE, joints=JOINTS, stamp_ns=None, **changes):
        """Publish a state under these joint names, in their order, one period after the last."""
        self.stamp_ns = self.stamp_ns + DT_NS if stamp_ns is None else stamp_ns
        position = dict(zip(JOINTS, state[:2], strict=True))
        velocity = dict(zip(JOINTS, state[2:], strict=True))
        message = JointState(name=joints, position=[position.get(j, 9.0) for j in joints],
                             velocity=[velocity.get(j, 9.0) for j in joints])
        for key, value in changes.items():
            setattr(message, key, value)
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(self.stamp_ns, 10**9)
        self.states.publish(message)

    def values(self, concern):
        return {v.key: v.value for v in self.statuses[concern].values}


def tick_values(tick):
    return {v.key: v.value for v in tick.values}
