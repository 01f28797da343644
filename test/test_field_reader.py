"""Fields of one topic over several messages: unwrapped angles, derived velocities, refusals."""

from types import SimpleNamespace

from bag_factory import tiny_robot
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
from pydantic import ValidationError
import pytest
from scipy.spatial.transform import Rotation

from mbrl_ros.core.errors import ObservationError, SpecError
from mbrl_ros.core.field_reader import FieldReader
from mbrl_ros.core.message_path import MessagePath
from mbrl_ros.core.robot import JOINT_STATE, ObservationField

FIXED = settings(derandomize=True, deadline=None)
S = 1_000_000_000


def quaternion(x, y, z, w):
    return SimpleNamespace(x=x, y=y, z=z, w=w)


def turned(yaw):
    return SimpleNamespace(orientation=quaternion(0.0, 0.0, np.sin(yaw / 2), np.cos(yaw / 2)))


def joints(position, velocity=(), names=('slider', 'hinge')):
    return SimpleNamespace(name=list(names), position=list(position), velocity=list(velocity))


def field(path, **changes):
    return ObservationField.model_validate({
        'name': 'field', 'unit': 'rad/s', 'topic': 'joint_states', 'type': JOINT_STATE,
        'path': path} | changes)


YAW = field('orientation.yaw', unit='rad', type='sensor_msgs/msg/Imu')
DERIVED = field('velocity[hinge]', when_missing='derive')


# A quaternion and its negative are one rotation, and its length says nothing.
@FIXED
@given(angles=st.tuples(st.floats(-3.1, 3.1), st.floats(-1.5, 1.5), st.floats(-3.1, 3.1)),
       scale=st.sampled_from([1.0, -1.0, 0.5, 3.0]))
def test_roll_pitch_and_yaw_are_those_of_scipy(angles, scale):
    # 'xyz': about the fixed axes x, then y, then z.
    parts = scale * Rotation.from_euler('xyz', angles).as_quat()
    message = SimpleNamespace(orientation=quaternion(*parts.tolist()))
    for name, angle in zip(('roll', 'pitch', 'yaw'), angles, strict=True):
        assert MessagePath.parse(f'orientation.{name}').read(message) \
            == pytest.approx(angle, abs=1e-6)


@pytest.mark.parametrize('parts', [(0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, np.nan)])
def test_a_quaternion_that_is_no_rotation_has_no_angle(parts):
    message = SimpleNamespace(orientation=quaternion(*parts))
    assert np.isnan(MessagePath.parse('orientation.yaw').read(message))


def test_a_field_of_that_name_is_taken_as_it_is():
    assert MessagePath.parse('pose.yaw').read(
        SimpleNamespace(pose=SimpleNamespace(yaw=0.3))) == 0.3
    with pytest.raises(ObservationError, match="has no field 'yaw'"):
        MessagePath.parse('pose.yaw').read(SimpleNamespace(pose=SimpleNamespace(x=1.0)))


def test_several_indices_and_names_of_a_trajectory():
    point = SimpleNamespace(positions=[1.0, 2.0])
    message = SimpleNamespace(joint_names=['elbow', 'wrist'], points=[point])
    assert MessagePath.parse('points[0].positions[wrist]').read(message) == 2.0
    with pytest.raises(ObservationError, match='index 1 of an array of 1'):
        MessagePath.parse('points[1].positions[wrist]').read(message)


@pytest.mark.parametrize('text', ['points[0]..x', 'points[0]x', '[0]', 'points[0].', 'a[b]c[d]'])
def test_what_is_no_path_is_refused(text):
    with pytest.raises(SpecError, match=r'quaternion\.yaw'):
        MessagePath.parse(text)


# Steps below pi in size are told apart; the message only knows the angle up to whole turns.
@FIXED
@given(start=st.floats(-3.0, 3.0), steps=st.lists(st.floats(-3.0, 3.0), max_size=30))
def test_angles_are_unwrapped_across_messages(start, steps):
    reader, angle = FieldReader([YAW]), start
    assert reader.read(turned(angle), 0) == pytest.approx([angle], abs=1e-9)
    for number, step in enumerate(steps):
        angle += step
        assert reader.read(turned(angle), number * S) == pytest.approx([angle], abs=1e-9)
    reader.forget()
    # Without the past it is an angle in -pi..pi again.
    assert abs(reader.read(turned(angle), 0)[0]) <= np.pi + 1e-9


def test_an_angle_that_is_missing_once_does_not_break_the_thread():
    reader = FieldReader([YAW])
    reader.read(turned(3.0), 0)
    gap = SimpleNamespace(orientation=quaternion(0.0, 0.0, 0.0, 0.0))
    assert np.isnan(reader.read(gap, 1)[0])
    assert reader.read(turned(3.3), 2) == pytest.approx([3.3])


@pytest.mark.parametrize('velocity', [(), (np.nan, np.nan), (9.0, np.nan)])
def test_a_missing_velocity_is_the_slope_of_its_position(velocity):
    reader = FieldReader([field('position[hinge]', unit='rad'), DERIVED])
    first = reader.read(joints((0.0, 1.0), velocity), 10 * S)
    assert first[0] == 1.0
    assert np.isnan(first[1])
    # 0.5 rad in 0.25 s; the joint is found by its name.
    moved = joints((1.5, 0.0), velocity[::-1], ('hinge', 'slider'))
    assert reader.read(moved, 10 * S + S // 4) == [1.5, 2.0]


def test_a_reported_velocity_is_not_replaced():
    reader = FieldReader([DERIVED])
    reader.read(joints((0.0, 1.0)), 0)
    assert reader.read(joints((0.0, 2.0), (0.0, 7.0)), S) == [7.0]


def test_slopes_of_doubled_late_and_overdue_messages():
    reader = FieldReader([DERIVED], longest_gap_s=1.5)
    reader.read(joints((0.0, 0.0)), 0)
    assert reader.read(joints((0.0, 3.0)), S) == [3.0]
    # The same message again: nothing new.
    assert reader.read(joints((0.0, 3.0)), S) == [3.0]
    # From before: no slope; the next one after it has one again, 1 rad in 0.5 s.
    assert np.isnan(reader.read(joints((0.0, 2.0)), S // 2)[0])
    assert reader.read(joints((0.0, 3.0)), S) == [2.0]
    # After 2 s of silence it may have been anywhere.
    assert np.isnan(reader.read(joints((0.0, 4.0)), 3 * S)[0])
    assert reader.read(joints((0.0, 4.5)), 4 * S) == [0.5]
    reader.forget()
    assert np.isnan(reader.read(joints((0.0, 5.0)), 5 * S)[0])


def test_nothing_is_derived_unasked():
    reader = FieldReader([field('velocity[hinge]')])
    assert np.isnan(reader.read(joints((0.0, 1.0), (0.0, np.nan)), 0)[0])
    with pytest.raises(ObservationError, match='index 1 of an array of 0'):
        reader.read(joints((0.0, 1.0)), S)


def test_a_velocity_that_only_this_joint_lacks_is_an_error():
    reader = FieldReader([DERIVED])
    with pytest.raises(ObservationError, match='index 1 of an array of 1'):
        reader.read(joints((0.0, 1.0), (2.0,)), 0)
    with pytest.raises(ObservationError, match="no 'hinge'"):
        reader.read(joints((0.0, 1.0), names=('a', 'b')), 0)


X = {'name': 'x', 'unit': 'm', 'topic': 'joint_states', 'type': JOINT_STATE,
     'path': 'position[slider]'}


@pytest.mark.parametrize(('changes', 'text'), [
    ({'path': 'velocity[other]'}, "not for 'velocity[other]'"),
    ({'path': 'effort[slider]'}, "not for 'effort[slider]'"),
    ({'topic': 'elsewhere'}, "observes 'position[joint]' on the same topic"),
    ({'type': 'sensor_msgs/msg/Imu', 'path': 'angular_velocity.z', 'topic': 'imu'},
     "not for 'angular_velocity.z'"),
])
def test_only_a_velocity_beside_its_position_may_be_derived(changes, text):
    v = X | {'name': 'v', 'unit': 'm/s', 'path': 'velocity[slider]', 'when_missing': 'derive'}
    stale = {'joint_states': 0.25}
    assert tiny_robot(observation=[X, v]).observation[1].when_missing == 'derive'
    if 'topic' in changes:
        stale[changes['topic']] = 0.25
    with pytest.raises(ValidationError) as caught:
        tiny_robot(observation=[X, v | changes], stale_after_s=stale)
    assert text in str(caught.value)


def test_an_angle_of_a_quaternion_is_in_rad():
    with pytest.raises(ValidationError, match="an angle in 'rad', not in '1'"):
        field('orientation.yaw', unit='1', type='sensor_msgs/msg/Imu')


def test_how_a_velocity_comes_about_is_no_part_of_the_signature():
    v = X | {'name': 'v', 'unit': 'm/s', 'path': 'velocity[slider]'}
    refuse, derive = (tiny_robot(observation=[X, v | {'when_missing': choice}])
                      for choice in ('refuse', 'derive'))
    assert refuse.signature_hash() == derive.signature_hash()
