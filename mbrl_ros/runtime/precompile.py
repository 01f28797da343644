"""
Compile a rollout in a process of its own, into the cache, at low priority.

Compiling is a second of pure Python. In the process of a running controller it would hold the
interpreter's lock and make ticks late; here it takes nothing but a core that is free.
"""

from contextlib import suppress
import json
import os
from pathlib import Path
import subprocess
import sys

import numpy as np

from mbrl_ros.core.errors import MbrlError
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.core.task import TaskSpec
from mbrl_ros.runtime import artifact
from mbrl_ros.runtime.rollout import is_compiled, Rollout
from mbrl_ros.runtime.rollout_config import RolloutConfig

TIMEOUT_S = 300.0
NICENESS = 10


def precompile(model: Path, robot: RobotSpec, task: TaskSpec, config: RolloutConfig,
               provider: str, precision: str, asks: str = 'costs') -> None:
    """
    Put the compiled rollout of a model into the cache, if it can be made.

    With it goes what answers the method `asks` of the rollout, where that is a graph of its own.
    Nothing is raised and nothing returned: whoever builds the rollout afterwards finds it in the
    cache, or meets the same error and can say it.
    """
    with suppress(MbrlError):
        if asks == 'costs' and is_compiled(artifact.load(model, robot), robot, task, config,
                                           provider, precision):
            return
    request = json.dumps({
        'model': str(model), 'robot': robot.model_dump_json(), 'task': task.model_dump_json(),
        'config': config.model_dump(), 'runtime': [provider, precision],
        'asks': asks})
    try:
        subprocess.run([sys.executable, '-m', __name__], input=request, text=True, check=False,
                       timeout=TIMEOUT_S, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return


def main() -> int:
    """Serve one request from the standard input."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # not that of who started it
    os.nice(NICENESS)
    request = json.load(sys.stdin)
    robot = RobotSpec.model_validate_json(request['robot'])
    task = TaskSpec.model_validate_json(request['task'])
    try:
        rollout = Rollout(artifact.load(Path(request['model']), robot), robot, task,
                          RolloutConfig.model_validate(request['config']), *request['runtime'])
        getattr(rollout, request['asks'])(
            np.zeros(len(robot.observation)), np.zeros((1, task.horizon, len(robot.action))),
            rollout.draw(np.random.default_rng(0)))
        rollout.close()
    except MbrlError:
        return 1
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
