"""dynamics.onnx on disk: what goes in comes out, and everything else is refused."""

from hashlib import sha256
import json

from fakes import cart, cart_dict, cart_model, linear_model, metadata_of, save_artifact
import numpy as np
import onnx
import pytest

from mbrl_ros.core.errors import ModelError
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.runtime import artifact
from mbrl_ros.runtime.dynamics import Dynamics


@pytest.fixture
def path(tmp_path):
    path = tmp_path / 'cart' / 'dynamics.onnx'
    save_artifact(path, cart_model(), metadata_of(cart(), 2))
    return path


def refusal(path, robot=None):
    with pytest.raises(ModelError) as caught:
        artifact.load(path, robot or cart())
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_round_trip(path):
    loaded = artifact.load(path, cart())
    assert loaded.members == 2
    assert loaded.metadata == metadata_of(cart(), 2)
    assert loaded.hash == sha256(path.read_bytes()).hexdigest()
    assert loaded.path == path
    mean, _ = Dynamics(loaded.model, loaded.metadata)(np.array([[0.0, 1.0]]), np.array([[2.0]]))
    np.testing.assert_allclose(mean[:, 0], [[0.1, 1.2]] * 2, rtol=1e-6)


def test_equal_input_gives_equal_bytes():
    robot = cart()
    metadata = metadata_of(robot, 2, data={'b': 1, 'a': 2})
    turned = dict(reversed(metadata.items()))
    one, same = (artifact.serialise(cart_model(), data) for data in (metadata, turned))
    assert one == same
    assert one != artifact.serialise(cart_model(std=0.5), metadata)


def test_serialising_does_not_change_the_argument():
    model = cart_model()
    before = model.SerializeToString(deterministic=True)
    artifact.serialise(model, metadata_of(cart(), 2))
    assert model.SerializeToString(deterministic=True) == before


def test_missing_file_says_how_to_train_one(tmp_path):
    message = refusal(tmp_path / 'none.onnx')
    assert 'mbrl-ros train' in message
    assert '--robot cart' in message


@pytest.mark.parametrize('damage', [
    lambda data: b'', lambda data: b'hello', lambda data: data[:len(data) // 2],
    lambda data: data[:-1], lambda data: bytes(100) + data[100:],
], ids=['empty', 'text', 'half', 'a byte short', 'zeroed head'])
def test_corrupt_file(path, damage):
    path.write_bytes(damage(path.read_bytes()))
    assert 'not a valid ONNX model' in refusal(path)


def test_foreign_onnx(path):
    onnx.save(cart_model(), path)
    assert 'without the metadata of mbrl-ros train' in refusal(path)


def with_metadata(path, text):
    model = onnx.load(path)
    del model.metadata_props[:]
    model.metadata_props.add(key=artifact.METADATA_KEY, value=text)
    onnx.save(model, path)


@pytest.mark.parametrize('text', ['{', '[1]', '3', 'null'])
def test_metadata_that_is_none(path, text):
    with_metadata(path, text)
    assert 'without the metadata of mbrl-ros train' in refusal(path)


@pytest.mark.parametrize('key', artifact.REQUIRED)
def test_metadata_lacks_a_key(path, key):
    metadata = metadata_of(cart(), 2)
    del metadata[key]
    with_metadata(path, json.dumps(metadata))
    assert f'metadata lacks {key}' in refusal(path)


def test_each_difference_of_the_robot_is_spelled_out(path):
    spec = cart_dict()
    spec['control_rate_hz'] = 20.0
    spec['observation'][1] |= {'unit': 'rad/s', 'feature': 'angle'}
    spec['action'][0]['max'] = 3.0
    message = refusal(path, RobotSpec.model_validate(spec))
    assert "another robot than 'cart'" in message
    for line in ('control_rate_hz: model 10.0, robot 20.0',
                 "observation[1].unit: model 'm/s', robot 'rad/s'",
                 "observation[1].feature: model 'linear', robot 'angle'",
                 'action[0].max: model 2.0, robot 3.0'):
        assert f'\n  {line}\n' in message
    assert message.count('\n  ') == 4


def test_joints_in_another_order_are_another_robot(path):
    spec = cart_dict()
    spec['observation'].reverse()
    message = refusal(path, RobotSpec.model_validate(spec))
    assert "observation[0].name: model 'position', robot 'velocity'" in message


def test_a_missing_field_is_another_robot(path):
    spec = cart_dict()
    spec['observation'].pop()
    message = refusal(path, RobotSpec.model_validate(spec))
    assert "observation: model has ['position', 'velocity'], robot has ['position']" in message


def test_other_topics_are_the_same_robot(path):
    spec = cart_dict()
    for field in spec['observation']:
        field['topic'] = 'arm/joint_states'
    spec['stale_after_s'] = {'arm/joint_states': 0.1}
    assert artifact.load(path, RobotSpec.model_validate(spec)).members == 2


def one_more_field(members):
    return linear_model(np.zeros((members, 3, 3)), np.zeros((members, 3, 1)),
                        np.zeros((members, 3)), np.ones((members, 3)))


def renamed_output():
    model = cart_model()
    model.graph.output[0].name = 'average'
    for node in model.graph.node:
        node.output[:] = ['average' if name == 'mean' else name for name in node.output]
    return model


def wide_output():
    """Inputs as agreed, but an output that has a field too many."""
    model = cart_model()
    for node in model.graph.node:
        node.output[:] = ['inner' if name == 'mean' else name for name in node.output]
    model.graph.node.append(onnx.helper.make_node('Concat', ['inner', 'action'], ['mean'], axis=2))
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 3
    return model


@pytest.mark.parametrize(('model', 'part'), [
    (cart_model(members=3), "'observation': (3, 'N', 2)"),
    (one_more_field(2), "'observation': (2, 'N', 3)"),
    (renamed_output(), 'average'),
    (wide_output(), '3'),
], ids=['members', 'fields', 'names', 'outputs'])
def test_graph_that_is_not_the_contract(path, model, part):
    save_artifact(path, model, metadata_of(cart(), 2))
    message = refusal(path)
    assert part in message.split('expected')[0]
    assert "expected inputs {'observation': (2, 'N', 2), 'action': (2, 'N', 1)}" in message
