"""Ask the robot's own controllers which joints they drive, in which order."""

from collections.abc import Sequence
import time

from rcl_interfaces.srv import GetParameters
from rclpy.client import Client
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from mbrl_ros.core.errors import SpecError
from mbrl_ros.core.message_path import MessagePath
from mbrl_ros.core.robot import ActionField, JOINT_TRAJECTORY, RobotSpec

# Of a controller of ros2_control: <name>/commands, or <name>/joint_trajectory.
COMMAND_TOPICS = ('commands', 'joint_trajectory')
DISCOVERY_S, REPLY_S = 0.3, 2.0


def check_joint_order(node: Node, robot: RobotSpec) -> None:
    """
    Compare the joints of the robot spec with the parameter `joints` of the robot's controllers.

    A number for the wrong joint is the one mistake that no limit catches. A controller that cannot
    be asked, as a simulated robot has none, is not checked, and the log says so.

    Parameters
    ----------
    node : Node
        Whose names and remaps hold. It may be in the middle of a callback: the questions are
        asked by another node, with an executor of its own.
    robot : RobotSpec
        `joint` of its action fields is what the controller calls each.

    Raises
    ------
    SpecError
        If a controller drives other joints, or in another order.

    """
    controllers: dict[str, list[ActionField]] = {}
    for field in robot.action:
        controller, _, topic = node.resolve_topic_name(field.topic).rpartition('/')
        if topic in COMMAND_TOPICS and controller:
            controllers.setdefault(controller, []).append(field)
    for controller, joints in _ask(node, list(controllers)).items():
        if joints:
            _compare(node, robot, controller, controllers[controller], joints)
        else:
            node.get_logger().info(f'order of joints not checked: {controller} does not answer '
                                   "what its parameter 'joints' is")


def _compare(node: Node, robot: RobotSpec, controller: str, fields: Sequence[ActionField],
             joints: list[str]) -> None:
    is_trajectory = fields[0].type == JOINT_TRAJECTORY
    paths = [MessagePath.parse(field.path) for field in fields]
    if is_trajectory:  # whose messages name the joints: the order does not matter
        ours = [str(path.key) for path in paths]
        if sorted(set(ours)) == sorted(joints):
            return
    else:
        ordered = [field for _, field in sorted(
            zip([path.key if isinstance(path.key, int) else 0 for path in paths], fields,
                strict=True), key=lambda pair: pair[0])]
        ours = [field.joint for field in ordered]
        if not all(ours):
            unnamed = ', '.join(field.name for field in ordered if not field.joint)
            node.get_logger().warning(
                f'order of joints not checked: {controller} drives {joints}, but the robot spec '
                f"'{robot.name}' does not say which joint is which: add 'joint' to {unnamed}")
            return
        if ours == joints:
            return
    text = (f"{controller} drives the joints {joints} (its parameter 'joints'), but the robot "
            f"spec '{robot.name}' sends commands for {ours}. ")
    missing = [joint for joint in joints if joint not in ours]
    extra = [joint for joint in ours if joint not in joints]
    if missing or extra:
        text += (f'Only there: {missing}; only in the spec: {extra}. Change the action fields of '
                 "the spec, or 'joints' of the controller.")
    else:
        array = paths[0].attributes[-1]
        places = ', '.join(f'{joint}: {array}[{index}]' for index, joint in enumerate(joints))
        text += (f"In the spec, set the 'path' of each action field ({places}), or change "
                 "'joints' of the controller.")
    raise SpecError(text)


def _ask(node: Node, controllers: list[str]) -> dict[str, list[str]]:
    """Return the parameter `joints` of each controller; empty where there is no answer."""
    found: dict[str, list[str]] = {controller: [] for controller in controllers}
    if not controllers:
        return found
    # Names are resolved already: no remap may change them again.
    asker = Node(f'_{node.get_name()}_joint_order', context=node.context, enable_rosout=False,
                 use_global_arguments=False, start_parameter_services=False)
    executor = SingleThreadedExecutor(context=node.context)
    try:
        executor.add_node(asker)
        clients: dict[str, Client] = {
            controller: asker.create_client(GetParameters, f'{controller}/get_parameters')
            for controller in controllers}
        end_s = time.monotonic() + DISCOVERY_S
        for controller, client in clients.items():
            if not client.wait_for_service(max(0.0, end_s - time.monotonic())):
                continue
            future = client.call_async(GetParameters.Request(names=['joints']))
            executor.spin_until_future_complete(future, REPLY_S)
            reply = future.result() if future.done() else None
            if reply is not None and reply.values:
                found[controller] = list(reply.values[0].string_array_value)
    finally:
        executor.shutdown()
        asker.destroy_node()
    return found
