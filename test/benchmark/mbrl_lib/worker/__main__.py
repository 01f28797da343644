"""
mbrl-lib on our data and weights, served one JSON object a line: run by mbrl-lib's environment.

Start: python -I worker THREADS [--weights WEIGHTS.npz] [--device cpu|cuda]. Requests, and what
they answer:

- {"do": "info"}: versions, threads, device; with weights the budget and sizes of the model;
- with weights, {"do": "plan", "state": [...], "seed": n} with any of "population", "particles",
  "horizon" and "iterations": {"seconds": t, "actions": [[...], ...]}, one plan from a cold start;
- with weights, {"do": "costs", "file": "x.npz"} with arrays state (S,), actions (P, H, A), noise
  (H, K, S): {"costs": [...]}, with our random numbers instead of its own;
- {"do": "data", "file": "x.npz", "members": E, "seed": n}: takes the arrays that
  `Trainer.data` names, and makes an untrained model: {"settings": {...}};
- {"do": "epochs", "number": n}: trains for n epochs: {"seconds": [t, ...]}, all but the first;
- {"do": "fit", "capped": true|false, "file": "y.npz"}: trains an untrained model by its own
  rules: {"seconds": t, "epochs": n}, and the file gets arrays mean and std (E, N, S) of the
  changes in the holdout.

A request that fails answers {"error": "..."}.
"""

import argparse
from importlib.metadata import version
import json
import os
from pathlib import Path
import platform
import sys

from planner import Planner
import torch
from trainer import Trainer

PACKAGES = ('mbrl', 'torch', 'numpy', 'gymnasium', 'hydra-core', 'omegaconf')


def main():
    """Serve requests until the input ends."""
    parser = argparse.ArgumentParser(description='Serve mbrl-lib on stdin and stdout.')
    parser.add_argument('threads', type=int)
    parser.add_argument('--weights', type=Path)
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    options = parser.parse_args()
    # Answers keep the real output to themselves; what a library prints goes where errors go.
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    torch.set_num_threads(options.threads)
    info = {'versions': {'python': platform.python_version(),
                         **{name: version(name) for name in PACKAGES}},
            'device': options.device, 'threads': torch.get_num_threads()}
    trainer = Trainer(options.device)
    verbs = {name: getattr(trainer, name) for name in ('data', 'epochs', 'fit')}
    if options.weights is not None:
        planner = Planner(options.weights, options.device)
        verbs |= {name: getattr(planner, name) for name in ('plan', 'costs')}
        info |= planner.info()
    verbs['info'] = lambda: info
    for line in sys.stdin:
        try:
            request = json.loads(line)
            answer = verbs[request.pop('do')](**request)
        except Exception as error:
            answer = {'error': f'{type(error).__name__}: {error}'}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == '__main__':
    main()
