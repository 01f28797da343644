"""The cycle of the learning rate and reduced precision."""

import numpy as np
import pytest

from mbrl_ros.bench.trained import random_motion
from mbrl_ros.core.paths import find_config
from mbrl_ros.core.robot import load_robot
from mbrl_ros.core.yaml_file import load
from mbrl_ros.learning.config import TrainingConfig
from mbrl_ros.learning.trainer import Training

SMALL = {'members': 2, 'hidden_units': (16, 16), 'weight_decay': (0.0, 0.0, 0.0)}


@pytest.fixture(scope='module')
def sides():
    robot = load_robot('cartpole')
    parts = random_motion(robot, 0, 8, 25).split_holdout(0.25, 0)
    return robot, *(part.windows(1) for part in parts)


def rates(run, epochs):
    """Return the learning rate of every gradient step."""
    found, step = [], run._optimiser.step

    def watched():
        found.append({group['lr'] for group in run._optimiser.param_groups})
        step()
    run._optimiser.step = watched
    for _ in range(epochs):
        run.run_epoch()
    assert all(len(values) == 1 for values in found)
    return np.array([values.pop() for values in found])


def test_the_shipped_settings_are_read():
    config = load(find_config('training', 'fast'), TrainingConfig)
    assert (config.precision, config.cycle_steps) == ('bf16', 1000)


def test_the_learning_rate_rises_and_falls(sides):
    # 150 transitions in batches of 16 are 10 steps an epoch; 95 steps fill 10 epochs.
    config = TrainingConfig(**SMALL, batch_size=16, learning_rate=0.01, cycle_steps=95)
    run = Training(*sides, config, 0)
    assert run.most_steps == 100
    found = rates(run, 9)
    assert not run.is_done
    found = np.concatenate([found, rates(run, 1)])
    assert run.is_done
    # Three of the hundred steps up in a line, from a fiftieth of the peak; then a cosine: after 24
    # and 72 of the other 97, cos(pi 24 / 97) = 0.71281 and cos(pi 72 / 97) = -0.68972.
    assert found[:4] == pytest.approx([2e-4, 0.01 / 3, 0.02 / 3, 0.01])
    assert found[[27, 75]] == pytest.approx([0.01 * 0.856425, 0.01 * 0.155138], rel=1e-3)
    assert (np.diff(found[3:]) <= 0.0).all()
    assert found[-1] == pytest.approx(2e-4)


def test_without_a_cycle_it_stays(sides):
    config = TrainingConfig(**SMALL, batch_size=16, learning_rate=0.01)
    np.testing.assert_array_equal(rates(Training(*sides, config, 0), 2), 0.01)


@pytest.mark.parametrize('precision', ['float32', 'bf16'])
def test_the_seed_gives_the_weights_and_a_run_goes_on_as_if_never_stopped(sides, precision):
    config = TrainingConfig(**SMALL, batch_size=16, cycle_steps=30, precision=precision)
    runs = [Training(*sides, config, 0) for _ in range(3)]
    for run in runs[:2]:
        for _ in range(3):
            run.run_epoch()
    runs[2].run_epoch()
    resumed = Training(*sides, config, 0)
    resumed.restore(runs[2].state())
    while not resumed.is_done:
        resumed.run_epoch()
    first, *others = (run.result().ensemble.arrays() for run in (*runs[:2], resumed))
    for other in others:
        for name, array in first.items():
            np.testing.assert_array_equal(other[name], array, err_msg=name)


def test_reduced_precision_is_near_and_leaves_the_weights_whole(sides):
    losses = {}
    for precision in ('float32', 'bf16'):
        config = TrainingConfig(**SMALL, batch_size=16, cycle_steps=200, precision=precision,
                                learning_rate=0.005)
        run = Training(*sides, config, 0)
        while not run.is_done:
            run.run_epoch()
        losses[precision] = run.history[-1]['best_loss']
        assert {array.dtype for array in run.ensemble.arrays().values()} == {np.dtype('float32')}
    assert losses['bf16'] != losses['float32']  # it is not the same arithmetic
    # bf16 has 8 bits of mantissa: rounding of half a percent, against a loss that has fallen by 1
    # and more from its start near 1.
    assert losses['bf16'] == pytest.approx(losses['float32'], abs=0.2)
    assert losses['float32'] < 0.0
