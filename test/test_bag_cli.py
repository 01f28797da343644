"""`mbrl-ros bag`: what it prints about whole, truncated and missing bags."""

from bag_factory import array, joint_state, mark, write_bag
import pytest
from typer.testing import CliRunner

from mbrl_ros.cli.bag import app
from mbrl_ros.core.errors import BagError


@pytest.fixture
def bag(tmp_path):
    return write_bag(tmp_path / 'bag', [
        ('episode', 0, mark('start')), ('joint_states', 0, joint_state(0, [1.0, 2.0], [0.0, 0.0])),
        ('commands', 1_500_000_000, array(1.0)), ('episode', 1_500_000_000, mark('end'))])


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments],
                                env={'COLUMNS': '200'})
    if result.exception is not None:
        raise result.exception
    return result.output


def test_info_shows_topics_joints_duration_and_episodes(bag):
    text = run('info', bag)
    assert '1.5 s, 1 marked episodes' in text
    row = next(line for line in text.splitlines() if '/joint_states' in line)
    assert 'slider, hinge' in row


def test_recover_repairs_then_finds_nothing_to_do(bag):
    file = bag / 'bag_0.mcap'
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(BagError, match='Try: mbrl-ros bag recover'):
        run('info', bag)
    assert '4 messages recovered' in run('recover', bag)
    assert 'recovered:' in run('info', bag)
    assert 'nothing to recover' in run('recover', bag)


def test_no_bag_is_refused(tmp_path):
    with pytest.raises(BagError, match='no bag at'):
        run('info', tmp_path / 'absent')
