"""`bench pets`: PETS's loop on one of its tasks, several runs at once, and what the gates say."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
import json
import os
from pathlib import Path
from queue import SimpleQueue
import subprocess
import sys
from threading import Event
import time
from typing import Any

import numpy as np

from mbrl_ros.bench.known import drive_known_episode, known_planner
from mbrl_ros.bench.machine import describe_machine
from mbrl_ros.bench.pets_run import finished, Settings, Trial
from mbrl_ros.bench.process import BenchError
from mbrl_ros.bench.published import GATES, TASKS
from mbrl_ros.bench.returns import Report
from mbrl_ros.core.errors import SpecError
from mbrl_ros.core.files import replace_file

POLL_S = 0.5
LOG_FILE, KNOWN_FILE = 'log.txt', 'known_model.json'
LOG_LINES = 20


def bench(task: str, seeds: int, trials: int, planner: str, training: str, jobs: int,
          output: Path, report: Report, known_model: bool) -> dict[str, Any]:
    """
    Run PETS's loop for each seed, going on where earlier calls with the same settings ended.

    Parameters
    ----------
    task : str
        A key of `published.TASKS`.
    seeds, trials : int
        Number of runs, and of trials each has beside its random episode.
    planner, training : str
        Names in config/planners and config/training, or paths; '': those of the task.
    jobs : int
        Runs at the same time, each on a core of its own; 0: as many as there are cores.
    output : Path
        Folder for the runs, one in each `seed_<n>`.
    report : callable
        Told of progress.
    known_model : bool
        Whether to drive one episode a seed with MuJoCo itself as the model, for comparison.

    Returns
    -------
    dict
        See `summarise`, and `known_model_returns` (by seed; empty where there are none, and
        `known_model_note` says why); ready for JSON.

    Raises
    ------
    BenchError
        If a run fails; the text ends with what it said.

    """
    began = time.perf_counter()
    settings = [Settings.of(task, seed, planner, training) for seed in range(seeds)]
    folders = [output / f'seed_{seed}' for seed in range(seeds)]
    _run_all(settings, trials, folders, jobs, report)
    runs = [finished(folder)[:trials + 1] for folder in folders]
    note = _why_no_known_model(settings[0]) if known_model else 'not asked for'
    known = [] if note else [_known_return(*pair, report)
                             for pair in zip(settings, folders, strict=True)]
    return summarise(task, settings[0], runs) | {
        'known_model_returns': known, 'known_model_note': note, 'machine': describe_machine(),
        'wall_seconds': time.perf_counter() - began}


def summarise(task: str, settings: Settings, runs: Sequence[Sequence[Trial]]) -> dict[str, Any]:
    """
    Judge finished runs by the gates.

    Parameters
    ----------
    task : str
        A key of `published.TASKS`.
    settings : Settings
        Of the runs; any seed.
    runs : sequence of sequences of Trial
        Of each seed, the random episode first.

    Returns
    -------
    dict
        `returns` (seed x trial), `random_returns`, `max_so_far_mean` (by trial),
        `evaluations_per_plan` (of one network; those of gradients count as one),
        `robot_seconds` (of one run, the random episode included), `gates` (name to value,
        threshold, passed; a stretch is not judged), `passed`: whether all gates that the number
        of trials reaches are met.

    """
    returns = np.array([[trial.total_return for trial in run[1:]] for run in runs])
    best = np.maximum.accumulate(returns, axis=1).mean(axis=0)
    gates = {gate.name: {'value': float(best[gate.trial - 1]), 'threshold': gate.threshold,
                         'passed': bool(best[gate.trial - 1] >= gate.threshold),
                         'trial': gate.trial, 'is_stretch': gate.is_stretch}
             for gate in GATES[task] if gate.trial <= len(best)}
    candidates = max(trial.candidates for run in runs for trial in run)
    spec, goal = settings.robot, settings.task
    return {
        'task': task, 'robot': TASKS[task][0], 'task_spec': TASKS[task][1], 'seeds': len(runs),
        'trials': len(best), 'returns': returns.tolist(),
        'random_returns': [run[0].total_return for run in runs],
        'max_so_far_mean': best.tolist(),
        'evaluations_per_plan': candidates * goal.horizon
        * settings.planning.rollout.evaluations(settings.training.members),
        'robot_seconds': (len(best) + 1) * goal.episode_steps * spec.dt_s,
        'settings': {'planning': settings.planning.model_dump(mode='json'),
                     'horizon': goal.horizon,
                     'training': settings.training.model_dump(mode='json')},
        'gates': gates,
        'passed': all(gate['passed'] for gate in gates.values() if not gate['is_stretch'])}


def _why_no_known_model(settings: Settings) -> str:
    try:
        known_planner(settings.robot, settings.task, settings.planning)
    except SpecError as error:
        return str(error)
    return ''


def _known_return(settings: Settings, folder: Path, report: Report) -> float:
    """Drive an episode with MuJoCo as the model, or recall the return."""
    path = folder / KNOWN_FILE
    if not path.is_file():
        report(0, 1, f'with MuJoCo as the model, seed {settings.seed}')
        total = drive_known_episode(settings.robot, settings.task, settings.seed,
                                    settings.planning)
        replace_file(path, json.dumps(total))
    return float(json.loads(path.read_text()))


def _run_all(settings: Sequence[Settings], trials: int, folders: Sequence[Path], jobs: int,
             report: Report) -> None:
    cores: SimpleQueue[int] = SimpleQueue()
    mine = sorted(os.sched_getaffinity(0))
    jobs = jobs or len(mine)
    for index in range(jobs):
        cores.put(mine[index % len(mine)])
    total, running = len(folders) * (trials + 1), list[subprocess.Popen[bytes]]()
    stopped = Event()

    def tell() -> None:
        done = [finished(folder)[:trials + 1] for folder in folders]
        best = [max((trial.total_return for trial in run[1:]), default=None) for run in done]
        report(sum(map(len, done)), total, 'best so far: ' + ', '.join(
            '-' if value is None else f'{value:.0f}' for value in best))

    def work(settings: Settings, folder: Path) -> None:
        core = cores.get()
        try:
            if not stopped.is_set():
                _run_process(settings, trials, folder, core, running, stopped)
        finally:
            cores.put(core)

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(work, *pair) for pair in zip(settings, folders, strict=True)]
        try:
            while not all(future.done() for future in futures):
                _raise_first(futures)
                tell()
                time.sleep(POLL_S)
            _raise_first(futures)
            tell()
        finally:
            stopped.set()
            for process in running:
                process.terminate()


def _raise_first(futures: Sequence[Future[None]]) -> None:
    for future in futures:
        if future.done():
            future.result()


def _run_process(settings: Settings, trials: int, folder: Path, core: int,
                 running: list[subprocess.Popen[bytes]], stopped: Event) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, '-m', 'mbrl_ros.bench.pets_run', settings.model_dump_json(),
               str(trials), str(folder)]
    log = folder / LOG_FILE
    with log.open('wb') as stream:
        # It ends when the pipe to its input does: however this process ends, nothing goes on.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stream,
                                   stderr=subprocess.STDOUT,
                                   env=os.environ | {'OMP_NUM_THREADS': '1'})
        os.sched_setaffinity(process.pid, {core})
        running.append(process)
        if stopped.is_set():
            process.terminate()
        status = process.wait()
    if status:
        said = '\n'.join(log.read_text(errors='replace').splitlines()[-LOG_LINES:])
        raise BenchError(f'seed {settings.seed}: exit status {status} ({log}):\n{said}')
