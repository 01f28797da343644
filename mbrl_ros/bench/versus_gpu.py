"""Side by side with mbrl-lib on one GPU, at the published budget of PETS."""

from contextlib import ExitStack
import os
from pathlib import Path
from typing import Any

import numpy as np

from mbrl_ros.bench.contestant import Contestant
from mbrl_ros.bench.timing import in_turns, ratio
from mbrl_ros.runtime import providers

BUDGET = {'population': 400, 'particles': 20, 'horizon': 25, 'iterations': 5}
TURNS, WARM_UPS = 20, 2
SEED = 0
START = np.zeros(4)  # the cart-pole, hanging


def versus_on_gpu(client: Any, python: Path, model: Path, weights: Path, provider: str = 'cuda',
                  turns: int = TURNS) -> dict[str, Any]:
    """
    Plan in turns with mbrl-lib on the same device.

    Parameters
    ----------
    client : module
        test/benchmark/mbrl_lib/client.py.
    python : Path
        Of mbrl-lib's environment, whose torch must know the device.
    model, weights : Path
        dynamics.onnx, and the same ensemble's arrays.
    provider : str
        Of ours, and the device of mbrl-lib.
    turns : int
        Plans of each.

    Returns
    -------
    dict
        `mbrl_lib_<provider>_s`, and `<provider>_<precision>_s` and `ratio_<provider>_<precision>`
        for each precision: medians [s] and how many times slower mbrl-lib is. All None where the
        provider cannot run; then `<provider>_note` says why.

    """
    module = providers.load(provider)
    names = {f'{provider}_{precision}': precision for precision in module.PRECISIONS}
    results: dict[str, Any] = {f'mbrl_lib_{provider}_s': None,
                               f'{provider}_note': module.problem()}
    results |= {key: None for name in names for key in (f'{name}_s', f'ratio_{name}')}
    if results[f'{provider}_note']:
        return results
    with ExitStack() as stack:
        lib = stack.enter_context(client.MbrlLib(python, weights, len(os.sched_getaffinity(0)),
                                                 provider))
        plans = [lambda: lib.plan(START, SEED, **BUDGET)]
        for precision in names.values():
            ours = Contestant(model, BUDGET, provider, precision)
            stack.callback(ours.close)
            plans.append(lambda ours=ours: ours.plan(START))  # type: ignore[misc]
        theirs, *times_s = in_turns(plans, turns, WARM_UPS)
    results[f'mbrl_lib_{provider}_s'] = float(np.median(theirs))
    for name, times in zip(names, times_s, strict=True):
        results |= {f'{name}_s': float(np.median(times)), f'ratio_{name}': ratio(theirs, times)}
    return results
