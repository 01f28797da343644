"""
Processes to kill: a server that has imported all the rest forks one for each line it reads.

A line is JSON: [work, arguments, n]; the process ends itself with SIGKILL right before its n-th
change of a name, which is how others come to see a file (0: never). Says that it is ready, then
answers each line: the pid of the process, then its wait status.
"""

import json
import os
from pathlib import Path
import signal
import sys
import traceback

from fakes import cart
import torch

from mbrl_ros.cli.promote import promote
from mbrl_ros.data.dataset import load_dataset
from mbrl_ros.data.recover import recover
from mbrl_ros.learning import comparison, model_store, report, sweep  # noqa: F401
from mbrl_ros.learning.config import TrainingConfig
from mbrl_ros.learning.pipeline import train_model

CONFIG = TrainingConfig(members=2, hidden_units=(16, 16), weight_decay=(1e-5, 1e-5, 1e-5),
                        batch_size=16, max_epochs=25, min_steps=10_000)


def train(bag, output, seed):
    train_model(load_dataset([bag], cart()), CONFIG, seed, Path(output))


def do_promote(new, over, robot):
    promote(new=new, over=over, robot=robot, force='a test')


WORK = {'train': train, 'promote': do_promote, 'recover': recover}


def kill_before_change(number):
    """Kill this process before its n-th change of a name."""
    seen = 0

    def hook(event, arguments):
        nonlocal seen
        is_change = event in ('os.rename', 'os.link', 'os.remove', 'os.rmdir', 'os.mkdir')
        seen += is_change
        if is_change and seen == number:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)


def main():
    torch.set_num_threads(1)
    # Seconds of drawing, in which there is nothing to break: here only the file matters.
    report.render = lambda *_arguments, **_options: 'a page'
    print('ready', flush=True)
    for line in sys.stdin:
        work, arguments, number = json.loads(line)
        child = os.fork()
        if child == 0:
            try:
                os.dup2(2, 1)  # what a verb prints is no answer
                if number:
                    kill_before_change(number)
                WORK[work](*arguments)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == '__main__':
    main()
