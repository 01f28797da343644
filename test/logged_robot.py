"""A node that publishes what the logger records."""

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray, String
from std_srvs.srv import SetBool, Trigger


class Robot(Node):
    """Publishes what a robot and its controller would; keeps diagnostics and marks."""

    def __init__(self, qos=10):
        super().__init__('robot')
        self.states = self.create_publisher(JointState, 'joint_states', qos)
        self.commands = self.create_publisher(
            Float64MultiArray, 'forward_command_controller/commands', qos)
        self.clock = self.create_publisher(Clock, '/clock', 10)
        self.marks, self.statuses = [], {}
        self.create_subscription(String, 'episode', lambda m: self.marks.append(m.data), 10)
        self.create_subscription(DiagnosticArray, '/diagnostics', self.on_diagnostics, 10)
        self.record_client = self.create_client(SetBool, '/data_logger/record')
        self.episode_client = self.create_client(Trigger, '/data_logger/new_episode')

    def on_diagnostics(self, message):
        self.statuses |= {status.name: status for status in message.status}

    def observe(self, stamp_ns, value):
        message = JointState(name=['hinge', 'slider'], position=[2.0, value],
                             velocity=[4.0, 3.0])
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
        self.states.publish(message)

    def command(self, value):
        self.commands.publish(Float64MultiArray(data=[value]))

    def tick(self, time_ns):
        message = Clock()
        message.clock.sec, message.clock.nanosec = divmod(time_ns, 10**9)
        self.clock.publish(message)
