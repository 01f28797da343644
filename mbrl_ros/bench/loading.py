"""
How long a rollout takes to be ready, in a fresh process: compiled, and from the cache.

Run by `loading_times` as `python -m mbrl_ros.bench.loading MODEL ROBOT TASK HORIZON PARTICLES`.
"""

import json
from pathlib import Path
import sys
import tempfile
import time

from mbrl_ros.bench.process import BenchError, run_module


def loading_times(model: Path, robot: str, task: str, horizon: int,
                  particles: int) -> dict[str, float]:
    """
    Load a model in two fresh processes that share a cache which is empty at first.

    Returns
    -------
    dict
        `compile_s` and `cached_load_s`: from the file to a rollout that can run, verification
        included. `import_s`: what both take before that, for Python's imports and the specs; what
        only compiling imports is in `compile_s`.

    """
    with tempfile.TemporaryDirectory(prefix='mbrl_ros_') as cache:
        what = (model, robot, task, horizon, particles)
        found = [json.loads(run_module('mbrl_ros.bench.loading', *what,
                                       environment={'XDG_CACHE_HOME': cache})) for _ in range(2)]
    first, second = found
    if first['was_cached'] or not second['was_cached']:
        raise BenchError(f'the cache did not do its work: {found}')
    return {'compile_s': first['ready_s'], 'cached_load_s': second['ready_s'],
            'import_s': second['import_s']}


def _measure(model: Path, robot_name: str, task_name: str, horizon: int, particles: int) -> None:
    began = time.perf_counter()
    # Their time is what is measured.
    from mbrl_ros.core.robot import load_robot  # noqa: PLC0415
    from mbrl_ros.core.task import load_task  # noqa: PLC0415
    from mbrl_ros.runtime import artifact  # noqa: PLC0415
    from mbrl_ros.runtime.rollout import Rollout  # noqa: PLC0415
    from mbrl_ros.runtime.rollout_config import RolloutConfig  # noqa: PLC0415

    robot = load_robot(robot_name)
    task = load_task(task_name, robot).model_copy(update={'horizon': horizon})
    imported = time.perf_counter()
    rollout = Rollout(artifact.load(model, robot), robot, task,
                      RolloutConfig.model_validate({'particles': particles}))
    ready = time.perf_counter()
    rollout.close()
    sys.stdout.write(json.dumps({'import_s': imported - began, 'ready_s': ready - imported,
                                 'was_cached': rollout.was_cached}))


if __name__ == '__main__':
    _measure(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
