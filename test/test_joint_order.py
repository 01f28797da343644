import pytest

pytest.importorskip('rclpy')

from controller_files import make_controller
from fakes import cart_dict
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node

from mbrl_ros.core.errors import SpecError
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.nodes.joint_order import check_joint_order

TRAJECTORY = {'topic': 'arm_controller/joint_trajectory',
              'type': 'trajectory_msgs/msg/JointTrajectory'}


def two_joints(first='shoulder', second='elbow', **wire):
    """A robot whose data[0] is for the joint `first` and data[1] for `second`."""
    spec = cart_dict()
    torque = spec['action'][0] | {'topic': 'arm_controller/commands'} | wire
    # The order of the fields is not that of the message.
    spec['action'] = [torque | {'name': 'b', 'path': 'data[1]', 'joint': second},
                      torque | {'name': 'a', 'path': 'data[0]', 'joint': first}]
    return RobotSpec.model_validate(spec)


def trajectory(*joints):
    spec = cart_dict()
    torque = spec['action'][0] | TRAJECTORY
    spec['action'] = [torque | {'name': f'torque_{joint}', 'path': f'points[0].effort[{joint}]'}
                      for joint in joints]
    return RobotSpec.model_validate(spec)


@pytest.fixture
def controller(ros, spin):
    """Return a function that starts a node as ros2_control's: with the parameter `joints`."""
    def begin(joints, name='arm_controller', **changes):
        node = Node(name, **changes)
        if joints is not None:
            node.declare_parameter('joints', joints)
        spin(node)
        return node
    return begin


@pytest.fixture
def asker(ros):
    """Return a function that makes the node whose names and remaps hold."""
    made = []

    def make(**changes):
        made.append(Node('asker', **changes))
        return made[-1]
    yield make
    for node in made:
        node.destroy_node()


def test_the_same_order_passes_in_silence(controller, asker, capfd):
    controller(['shoulder', 'elbow'])
    check_joint_order(asker(), two_joints())
    assert 'not checked' not in capfd.readouterr().err


def test_another_order_is_refused_with_both_and_what_to_change(controller, asker):
    controller(['elbow', 'shoulder'])
    with pytest.raises(SpecError) as error:
        check_joint_order(asker(), two_joints())
    text = str(error.value)
    assert "/arm_controller drives the joints ['elbow', 'shoulder']" in text
    assert "spec 'cart' sends commands for ['shoulder', 'elbow']" in text
    assert "set the 'path' of each action field (elbow: data[0], shoulder: data[1])" in text


@pytest.mark.parametrize(('joints', 'said'), [
    (['shoulder', 'wrist'], "Only there: ['wrist']; only in the spec: ['elbow']"),
    (['shoulder'], "Only there: []; only in the spec: ['elbow']"),
    (['shoulder', 'elbow', 'wrist'], "Only there: ['wrist']; only in the spec: []")])
def test_missing_and_additional_joints_are_refused(controller, asker, joints, said):
    controller(joints)
    with pytest.raises(SpecError) as error:
        check_joint_order(asker(), two_joints())
    assert said in str(error.value)


def test_a_trajectory_names_its_joints_so_that_only_the_set_counts(controller, asker):
    controller(['elbow', 'shoulder'])
    check_joint_order(asker(), trajectory('shoulder', 'elbow'))
    with pytest.raises(SpecError, match=r"only in the spec: \['wrist'\]"):
        check_joint_order(asker(), trajectory('shoulder', 'wrist'))


def test_namespaces_and_remaps_lead_to_the_controller(controller, asker):
    controller(['elbow', 'shoulder'], namespace='left', name='torques')
    node = asker(namespace='left', cli_args=[
        '--ros-args', '-r', 'arm_controller/commands:=torques/commands'])
    with pytest.raises(SpecError, match='/left/torques drives the joints'):
        check_joint_order(node, two_joints())
    node = asker(cli_args=[
        '--ros-args', '-r', 'arm_controller/commands:=/left/torques/commands'])
    with pytest.raises(SpecError, match='/left/torques drives the joints'):
        check_joint_order(node, two_joints())


def test_without_anybody_to_ask_it_goes_on_and_says_so(asker, logged):
    check_joint_order(asker(), two_joints())
    assert logged('order of joints not checked: /arm_controller does not answer')


def test_a_controller_without_the_parameter_is_not_checked(controller, asker, logged):
    controller(None)
    check_joint_order(asker(), two_joints())
    assert logged('order of joints not checked: /arm_controller does not answer')


def test_a_spec_that_does_not_name_its_joints_is_warned_about(controller, asker, logged):
    controller(['shoulder', 'elbow'])
    check_joint_order(asker(), two_joints(first=''))
    assert logged("does not say which joint is which: add 'joint' to a")


def test_topics_that_are_no_controllers_ask_nobody(asker, capfd):
    check_joint_order(asker(), two_joints(topic='arm_controller/cmd'))
    check_joint_order(asker(), two_joints(topic='/commands'))
    assert 'not checked' not in capfd.readouterr().err


def test_configure_inside_an_executor_refuses_another_order(files, controller, spin, robot,
                                                            eventually):
    from lifecycle_msgs.msg import Transition  # noqa: PLC0415 (beside its one user)
    from lifecycle_msgs.srv import ChangeState  # noqa: PLC0415
    controller(['hinge'], name='forward_command_controller')
    node = make_controller(files, lockstep=False, actuation_delay_steps=1)
    spin(robot)
    spin(node)
    assert robot.change_client.wait_for_service(5.0)
    future = robot.change_client.call_async(ChangeState.Request(
        transition=Transition(id=Transition.TRANSITION_CONFIGURE)))
    assert eventually(future.done, 10.0)
    assert not future.result().success
    assert "drives the joints ['hinge']" in node.refusal
    assert "sends commands for ['slider']" in node.refusal
    # Nothing was left behind: with the right joints it goes.
    assert node.count_publishers('forward_command_controller/commands') == 0


def test_the_order_is_not_asked_for_in_lock_step(files, controller):
    controller(['hinge'], name='forward_command_controller')
    node = make_controller(files)
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS, node.refusal
    node.leave()
    node.destroy_node()


