"""Our trainer side by side with mbrl-lib's: the same data and network, in turns, in one run."""

from collections.abc import Callable
import os
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mbrl_ros.bench.machine import describe_machine
from mbrl_ros.bench.own_training import OwnTraining
from mbrl_ros.bench.timing import ratio
from mbrl_ros.bench.trained import random_motion
from mbrl_ros.bench.versus import ComparisonError, environment, load_client
from mbrl_ros.bench.versus_table import QUIET, verdict
from mbrl_ros.core.paths import find_config
from mbrl_ros.core.robot import load_robot
from mbrl_ros.core.yaml_file import load
from mbrl_ros.learning.config import TrainingConfig

ROBOT, SEED = 'cartpole', 0
# As many transitions as mbrl-lib's own configuration of the cart-pole ever trains on: 5000, in
# episodes too short for the cart to bang against the rail's ends often.
EPISODES, EPISODE_STEPS, HOLDOUT = 200, 25, 0.15
# mbrl-lib's network and batch for the cart-pole; weight decay as in our shipped settings.
MEMBERS, BATCH = 5, 256
NETWORK: dict[str, Any] = {'members': MEMBERS, 'hidden_units': (200,) * 4,
                           'weight_decay': (1e-4, 2.5e-4, 2.5e-4, 2.5e-4, 5e-4)}
FAST = 'fast'  # in config/training
ROUNDS, QUICK_ROUNDS, EPOCHS_A_ROUND = 5, 2, 3
FITS, QUICK_FITS = 3, 1
LEAST_RATIO, MOST_TIME_RATIO = 1.3, 1 / 3
SLOW_S = 15.0  # until its patience ends it takes twenty times as long as until its last epoch

# Heading, format, our key, theirs, that of the ratio, and its goal.
ROWS: tuple[tuple[str, str, str, str, str, str, float | None], ...] = (
    ('samples a second, float32', '{:.0f}', 'ours_samples_per_s', 'mbrl_lib_samples_per_s',
     'ratio', '>=', LEAST_RATIO),
    ('the same, ours in bf16', '{:.0f}', 'ours_bf16_samples_per_s', 'mbrl_lib_samples_per_s',
     'ratio_bf16', '', None),
    ('seconds to the holdout NLL of mbrl-lib', '{:.2f}', 'ours_seconds_to_same_nll',
     'mbrl_lib_seconds', 'time_ratio', '<=', MOST_TIME_RATIO),
    ('the same, mbrl-lib until its patience ends', '{:.2f}', 'ours_seconds_to_patient_nll',
     'mbrl_lib_patient_seconds', 'patient_time_ratio', '', None),
    ('seconds of the whole training', '{:.2f}', 'ours_seconds', 'mbrl_lib_seconds', '', '', None),
    ('its holdout NLL', '{:.2f}', 'ours_holdout_nll', 'mbrl_lib_holdout_nll', '', '', None),
)

Results = dict[str, Any]
History = list[tuple[float, float]]  # wall time [s] and NLL after each epoch
Report = Callable[[int, int, str], None]  # done, of how many, what


def bench(quick: bool, report: Report, console: Console) -> Results:
    """
    Train on both sides, in turns.

    Parameters
    ----------
    quick : bool
        Fewer rounds and fits, and no `patient_fit`, which a slow machine has no time for either.
    report : callable
        Told of progress.
    console : Console
        Where to print the commands that make mbrl-lib's environment.

    Returns
    -------
    dict
        Numbers; `is_met` says whether both goals are.

    Raises
    ------
    ComparisonError
        Without a checkout, or if mbrl-lib cannot be installed or fails.

    """
    report(0, 1, "mbrl-lib's environment and the data")
    client = load_client()
    python = environment(client, console)
    dataset = random_motion(load_robot(ROBOT), SEED, EPISODES, EPISODE_STEPS)
    training, holdout = dataset.split_holdout(HOLDOUT, SEED)
    threads = len(os.sched_getaffinity(0))
    ours = OwnTraining(training, holdout, threads)
    arrays = {f'{side}_{name}': array
              for side, part in (('training', training), ('holdout', holdout))
              for name, array in zip(('states', 'actions', 'next_states'), part.transitions(),
                                     strict=True)}
    results: Results = {'machine': describe_machine(), 'threads': threads,
                        'load_average': os.getloadavg()[0], 'batch_size': BATCH,
                        'transitions': training.num_transitions,
                        'holdout_transitions': holdout.num_transitions}
    try:
        with client.MbrlLib(python, None, threads) as lib:
            results['mbrl_lib'] = lib.info() | lib.data(arrays, MEMBERS, seed=SEED)
            results |= compare_rates(ours, lib, training.num_transitions,
                                     QUICK_ROUNDS if quick else ROUNDS, report)
            results |= compare_fits(ours, lib, arrays, QUICK_FITS if quick else FITS, report)
            if not quick and results['mbrl_lib_seconds'] <= SLOW_S:
                report(0, 1, 'fit of mbrl-lib until its patience ends')
                results |= patient_fit(ours, lib, results['fits'][-1]['ours_history'])
    except RuntimeError as error:
        raise ComparisonError(str(error)) from error
    time_ratio = results['time_ratio']
    results['is_met'] = bool(results['ratio'] >= LEAST_RATIO and time_ratio is not None
                             and time_ratio <= MOST_TIME_RATIO)
    return results


def compare_rates(ours: OwnTraining, lib: Any, transitions: int, rounds: int,
                  report: Report) -> Results:
    """
    Time epochs in turns, each with its score of the holdout, as both trainers do.

    One epoch is the same number of gradient steps on both sides: one for each batch of the
    transitions. The first of each turn does not count.
    """
    runs = {precision: ours.start(
        TrainingConfig(**NETWORK, batch_size=BATCH, precision=precision, min_steps=10**9,
                       max_epochs=10**9), SEED) for precision in ('float32', 'bf16')}
    times_s: dict[str, list[float]] = {name: [] for name in (*runs, 'mbrl_lib')}
    for turn in range(rounds):
        for name, run in runs.items():
            report(turn, rounds, f'epochs in turns: ours, {name}')
            times_s[name] += ours.time_epochs(run, EPOCHS_A_ROUND)
        report(turn, rounds, 'epochs in turns: mbrl-lib')
        times_s['mbrl_lib'] += list(lib.epochs(EPOCHS_A_ROUND + 1))
    rates = {name: transitions / float(np.median(times)) for name, times in times_s.items()}
    theirs = np.array(times_s['mbrl_lib'])
    return {'ours_samples_per_s': rates['float32'], 'ours_bf16_samples_per_s': rates['bf16'],
            'mbrl_lib_samples_per_s': rates['mbrl_lib'],
            'ratio': ratio(theirs, np.array(times_s['float32'])),
            'ratio_bf16': ratio(theirs, np.array(times_s['bf16'])),
            'epoch_times_s': {name: list(map(float, times)) for name, times in times_s.items()}}


def compare_fits(ours: OwnTraining, lib: Any, arrays: dict[str, np.ndarray], fits: int,
                 report: Report) -> Results:
    """
    Train from new weights on both sides in turns, each by its own rules, seed after seed.

    Returns
    -------
    dict
        Medians over the seeds, None where ours was never as good; `fits` has a dict for each.

    """
    config = load(find_config('training', FAST), TrainingConfig).model_copy(update=NETWORK)
    rows: list[Results] = []
    for seed in range(fits):
        report(seed, fits, f'fit of mbrl-lib, seed {seed}')
        lib.data(arrays, MEMBERS, seed=seed)
        seconds, epochs, mean, std = lib.fit(capped=True)
        nll, history = ours.nll(mean, std), []
        for epoch in ours.fit(config, seed):
            history.append((epoch.seconds, epoch.nll))
            report(seed, fits, f'fit of ours, seed {seed}: step {epoch.steps} of '
                               f'{epoch.most_steps}, NLL {epoch.nll:.2f}')
        first_s = first_as_good(history, nll)
        rows.append({'mbrl_lib_seconds': seconds, 'mbrl_lib_epochs': epochs,
                     'mbrl_lib_holdout_nll': nll, 'ours_seconds_to_same_nll': first_s,
                     'time_ratio': None if first_s is None else first_s / seconds,
                     'ours_seconds': history[-1][0], 'ours_holdout_nll': history[-1][1],
                     'ours_history': history})
    columns = {key: [row[key] for row in rows] for key in rows[0] if key != 'ours_history'}
    return {key: None if None in column else float(np.median(column))
            for key, column in columns.items()} | {'fits': rows}


def patient_fit(ours: OwnTraining, lib: Any, history: History) -> Results:
    """
    Train mbrl-lib as in the last fit, but until its patience ends, however many epochs that takes.

    Its configuration allows 25 epochs to one call, and calls again after every 50 control steps.
    """
    seconds, epochs, mean, std = lib.fit(capped=False)
    nll = ours.nll(mean, std)
    first_s = first_as_good(history, nll)
    return {'mbrl_lib_patient_seconds': seconds, 'mbrl_lib_patient_epochs': epochs,
            'mbrl_lib_patient_holdout_nll': nll, 'ours_seconds_to_patient_nll': first_s,
            'patient_time_ratio': None if first_s is None else first_s / seconds}


def first_as_good(history: History, nll: float) -> float | None:
    """Return the first time [s] at which a score is at or below another; None if it never is."""
    return next((seconds for seconds, score in history if score <= nll), None)


def train_table(results: Results) -> Table:
    """Return the numbers, with goals and whether they are met."""
    machine = results['machine']
    table = Table(title=f"5 networks of 4 x 200 beside mbrl-lib: {machine['processor']}, "
                        f"{results['threads']} threads",
                  caption=f"{results['transitions']} transitions in batches of "
                          f"{results['batch_size']}, {results['holdout_transitions']} held out; "
                          f"medians of {len(results['fits'])} fits")
    uneven = max(max(times_s) / min(times_s) for times_s in results['epoch_times_s'].values())
    if uneven > QUIET:
        table.caption = (f'{table.caption}\nThe machine was busy: epochs differ by a factor of '
                         f'{uneven:.1f}. Run again.')
    for heading in ('', 'ours', 'mbrl-lib', 'ratio', 'goal', ''):
        table.add_column(heading, justify='left' if heading == '' else 'right')

    for what, form, own, theirs, quotient, relation, bound in ROWS:
        value = results.get(quotient)
        table.add_row(what, *(_text(results.get(key), form) for key in (own, theirs)),
                      _text(value, '{:.2f}') if quotient else '',
                      '' if bound is None else f'{relation} {bound:.2f}',
                      '[red]missed[/]' if bound is not None and value is None
                      else verdict(value, relation, bound))
    return table


def _text(value: float | None, form: str) -> str:
    return '-' if value is None else form.format(value)
