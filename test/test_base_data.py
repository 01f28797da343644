"""Bags of a base: two topics of different rates, jitter, quaternions; the dataset by hand."""

from bag_factory import MS, write_bag
import numpy as np
import pytest

from mbrl_ros.core.robot import load_robot
from mbrl_ros.data.bag_metadata import typestore
from mbrl_ros.data.dataset import load_dataset

SPEC = load_robot('base')
DT_NS = 50 * MS
START = 1_700_000_000_123_456_789


def message(kind, stamp_ns, **changes):
    """Return a message of zeros, but for numbers at dotted paths."""
    store = typestore()

    def zero(name):
        made = {}
        for field, (node, detail) in store.fielddefs[name][1]:
            if node.name == 'NAME':
                made[field] = zero(detail)
            elif node.name == 'BASE':
                made[field] = '' if detail[0] == 'string' else 0
            else:
                made[field] = np.zeros(detail[1])
        return store.types[name](**made)
    result = zero(kind)
    header = {'header.stamp.sec': stamp_ns // 10**9, 'header.stamp.nanosec': stamp_ns % 10**9}
    for path, value in (header | changes).items():
        *owners, last = path.split('.')
        target = result
        for owner in owners:
            target = getattr(target, owner)
        object.__setattr__(target, last, value)
    return result


def odometry(stamp_ns, x, y, yaw, speed, rate):
    return message('nav_msgs/msg/Odometry', stamp_ns, **{
        'pose.pose.position.x': x, 'pose.pose.position.y': y,
        'pose.pose.orientation.z': np.sin(yaw / 2), 'pose.pose.orientation.w': np.cos(yaw / 2),
        'twist.twist.linear.x': speed, 'twist.twist.angular.z': rate})


def imu(stamp_ns, rate):
    return message('sensor_msgs/msg/Imu', stamp_ns, **{'angular_velocity.z': rate})


def twist(stamp_ns, linear, angular):
    return message('geometry_msgs/msg/TwistStamped', stamp_ns, **{
        'twist.linear.x': linear, 'twist.angular.z': angular})


def rows(seed, duration_ns, period_ns, jitter):
    """Return jittered stamps from zero on, the first one exact."""
    rng = np.random.default_rng(seed)
    stamps = np.arange(0, duration_ns, period_ns)
    stamps[1:] += rng.integers(-int(jitter * period_ns), int(jitter * period_ns) + 1,
                               len(stamps) - 1)
    return stamps


def interpolate(times, values, wanted):
    """Return the line between the two neighbours, in integers as far as they reach."""
    result = []
    for time in wanted:
        right = next(i for i, other in enumerate(times) if other >= time)
        if times[right] - time <= 1000 or right == 0:  # within a microsecond: as it is
            result.append(values[right])
        elif time - times[right - 1] <= 1000:
            result.append(values[right - 1])
        else:
            share = (int(time) - int(times[right - 1])) / (int(times[right])
                                                           - int(times[right - 1]))
            result.append(values[right - 1] + share * (values[right] - values[right - 1]))
    return np.array(result)


@pytest.mark.parametrize('jitter', [0.0, 0.2])
def test_the_dataset_is_the_one_computed_by_hand(tmp_path, jitter):
    seconds = 4 * 10**9
    odom_at, imu_at = rows(0, seconds, DT_NS, jitter), rows(1, seconds, 10 * MS, jitter)
    rng = np.random.default_rng(2)
    # Four turns in 4 s: about 0.31 rad a message, several times across +-pi.
    odom_s = odom_at * 1e-9
    odom = np.stack([0.3 * odom_s, np.sin(odom_s), 3.0 + 2 * np.pi * odom_s,
                     *rng.normal(size=(2, len(odom_at)))], axis=1)
    gyro = rng.normal(size=len(imu_at))
    # A command 2 ms after each odometry: it acts on the step that begins at the next one.
    command_at = odom_at + 2 * MS
    commands = rng.uniform(-0.5, 0.5, (len(command_at), 2))
    first = twist(START - MS, 0.125, 0.25)
    stored = [('diff_drive_controller/cmd_vel', START - MS, first)]
    stored += [('odom', START + int(t), odometry(START + int(t), *row.tolist()))
               for t, row in zip(odom_at, odom, strict=True)]
    stored += [('imu', START + int(t), imu(START + int(t), float(rate)))
               for t, rate in zip(imu_at, gyro, strict=True)]
    stored += [('diff_drive_controller/cmd_vel', START + int(t),
                twist(START + int(t), *row.tolist()))
               for t, row in zip(command_at, commands, strict=True)]
    stored.sort(key=lambda item: item[1])
    dataset = load_dataset([write_bag(tmp_path / 'bag', stored)], SPEC)
    episode, = dataset.episodes
    # The grid starts with both topics, at zero, and ends with the first of them.
    end = min(odom_at[-1], imu_at[-1])
    grid = np.arange(int((end + 1000) // DT_NS) + 1) * DT_NS
    expected = np.column_stack([interpolate(odom_at, odom, grid),
                                interpolate(imu_at, gyro, grid)])
    # In the message yaw is known up to whole turns: the thread starts in -pi..pi, at 3.
    np.testing.assert_allclose(episode.states, expected, rtol=0.0, atol=1e-9)
    assert np.ptp(episode.states[:, 2]) > 3.5 * 2 * np.pi
    acting = [commands[np.flatnonzero(command_at <= t)[-1]] if (command_at <= t).any()
              else np.array([0.125, 0.25]) for t in grid[:-1]]
    np.testing.assert_array_equal(episode.actions, acting)
    assert dataset.describe_losses() == []


def test_a_silent_gyroscope_splits_the_episode(tmp_path):
    at = np.arange(0, 2 * 10**9, 10 * MS)
    stored = []
    for t in at.tolist():
        # 0.15 s without the gyroscope: beyond one and a half control periods.
        if not 900 * MS < t < 1050 * MS:
            stored.append(('imu', START + t, imu(START + t, 0.5)))
        if t % DT_NS == 0:
            stored += [('diff_drive_controller/cmd_vel', START + t, twist(START + t, 0.1, 0.2)),
                       ('odom', START + t, odometry(START + t, 0.0, 0.0, 0.0, 0.0, 0.0))]
    dataset = load_dataset([write_bag(tmp_path / 'bag', stored)], SPEC)
    # Odometry at 0 .. 0.9 s, then at 1.05 .. 1.95 s: 18 steps each.
    assert [episode.num_steps for episode in dataset.episodes] == [18, 18]
