"""Everything a controller needs, small and known: robot, task, planner and a linear model."""

from fakes import linear_model, metadata_of, save_artifact
import numpy as np
from rclpy.parameter import Parameter
import yaml

from mbrl_ros.core.paths import share_dir
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.nodes.mpc_controller import MpcController

DT_S = 0.04
SAFE = 0.25  # not what an idle planner would send by chance
FORCE_GAIN = 0.5
HORIZON = 5


def edit(path, **changes):
    """Change keys of a YAML file."""
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


def write_files(folder):
    """
    Write robots.yaml, tasks.yaml, planners.yaml and dynamics.onnx.

    The model: positions += dt velocities, slider velocity += FORCE_GAIN * action.
    """
    def copy(kind, stem, **changes):
        data = yaml.safe_load((share_dir() / 'config' / kind / f'{stem}.yaml').read_text())
        data |= changes
        (folder / f'{kind}.yaml').write_text(yaml.safe_dump(data))
        return data
    robot = copy('robots', 'cartpole')
    robot['action'][0]['safe_value'] = SAFE
    edit(folder / 'robots.yaml', **robot)
    copy('tasks', 'cartpole_swingup', horizon=HORIZON)
    copy('planners', 'cem', rollout={'particles': 2}, params={
        'population': 8, 'num_elites': 2, 'iterations': 1})
    spec = RobotSpec.model_validate(robot)
    kinematics = np.eye(4)
    kinematics[[0, 1], [2, 3]] = DT_S
    gain = np.array([[0.0], [0.0], [FORCE_GAIN], [0.0]])
    model = linear_model([kinematics] * 2, [gain] * 2, np.zeros((2, 4)), np.zeros((2, 4)))
    save_artifact(folder / 'dynamics.onnx', model, metadata_of(spec, 2))


def parameters_of(folder, **changes):
    return {'robot': str(folder / 'robots.yaml'), 'task': str(folder / 'tasks.yaml'),
            'planner': str(folder / 'planners.yaml'), 'model': str(folder / 'dynamics.onnx'),
            'lockstep': True, 'actuation_delay_steps': 0} | changes


def make_controller(folder, **changes):
    controller = MpcController()
    for name, value in parameters_of(folder, **changes).items():
        result, = controller.set_parameters([Parameter(name, value=value)])
        assert result.successful, result.reason
    return controller
