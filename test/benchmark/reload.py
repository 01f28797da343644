"""
Fifty hot reloads while the simulated cart-pole is driven in real time: is a tick missed?

    python test/benchmark/reload.py

Two copies of the shipped model that differ in their hash take turns. Half a minute.
"""

from itertools import pairwise
import os
from pathlib import Path
import shutil
from tempfile import TemporaryDirectory
import time

import onnx
from rich.console import Console

from mbrl_ros.core.paths import find_model
from mbrl_ros.core.robot import load_robot
from mbrl_ros.nodes.operator import Operator
from mbrl_ros.nodes.processes import own_domain
from mbrl_ros.nodes.table import NodeOptions

RELOADS, BEFORE_S, AFTER_S = 50, 4.0, 0.5


def main() -> int:
    """Reload, count, and return 0 if no tick was missed and every reload shows."""
    os.environ.update(own_domain())
    spec = load_robot('cartpole')
    with TemporaryDirectory() as name:
        folder = Path(name)
        model = onnx.load(find_model('cartpole'))
        onnx.save(model, folder / 'one.onnx')
        model.doc_string = 'another'
        onnx.save(model, folder / 'other.onnx')
        driving = folder / 'dynamics.onnx'
        shutil.copy(folder / 'one.onnx', driving)
        with Operator(spec, NodeOptions(model=str(driving)), {'data_logger': {'record': False}},
                      folder / 'logs') as operator:
            time.sleep(BEFORE_S)
            operator.start_counting()
            for number in range(RELOADS):
                shutil.copy(folder / ('one.onnx' if number % 2 else 'other.onnx'), driving)
                operator.trigger('mpc_controller', 'reload_model')
            time.sleep(AFTER_S)
            ticks = list(operator.ticks)
    hashes = [tick['model'] for tick in ticks if 'model' in tick]
    stamps_ns = [int(tick['stamp_ns']) for tick in ticks]
    found = {'ticks': len(ticks), 'missed': sum(tick['missed'] == 'True' for tick in ticks),
             'safe': sum(tick['safe'] == 'True' for tick in ticks),
             'without an observation': sum(b - a > 1.5 * spec.dt_ns or b == a
                                           for a, b in pairwise(stamps_ns)),
             'changes of the model': sum(a != b for a, b in pairwise(hashes))}
    Console().print(found)
    return int(list(found.values())[1:] != [0, 0, 0, RELOADS])


if __name__ == '__main__':
    raise SystemExit(main())
