"""The loop of the demo: trials on the robot, training between them."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from mbrl_ros.cli import show
from mbrl_ros.cli.trial import count_ticks, final_distance, realised_return, Trial
from mbrl_ros.core.paths import find_config, find_model
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.core.task import TaskSpec
from mbrl_ros.core.yaml_file import load
from mbrl_ros.data.dataset import load_dataset
from mbrl_ros.nodes.data_logger import LoggerParams
from mbrl_ros.nodes.goal_message import build_goal
from mbrl_ros.nodes.operator import Operator
from mbrl_ros.nodes.table import NodeOptions

# A policy that is still learning must go where no model can be trusted yet; 1 is never.
LEARNING_TRUST = {'max_spread': 1e6, 'trust.slow_above': 1.0, 'trust.hold_above': 1.0,
                  'trust.stop_above': 1.0}
SILENCE_S = 10.0


class DemoLoop:
    """
    Runs trials and keeps what they brought.

    Parameters
    ----------
    spec, goal : RobotSpec, TaskSpec
        Robot and task, loaded.
    robot, task : str
        Their names, as given to the nodes.
    seed : int
        Of robot, signals, planner and training.
    lockstep : bool
        Whether the robot waits for each command.
    params_file : str
        ROS parameter file for the nodes; '' for none.
    output : Path
        Folder for everything.
    console : Console
        Where to print.

    """

    def __init__(self, spec: RobotSpec, goal: TaskSpec, robot: str, task: str, seed: int,
                 lockstep: bool, params_file: str, output: Path, console: Console) -> None:
        self._spec, self._goal, self._seed, self._console = spec, goal, seed, console
        self._output = output
        self._options = NodeOptions(robot=robot, task=task, use_sim_time=lockstep,
                                    params_file=params_file)
        self._bags: list[Path] = []
        self.trials: list[Trial] = []

    def run_pretrained(self, count: int) -> list[Trial]:
        """Drive `count` trials with the shipped model."""
        model = find_model(self._spec.name)
        with self._operator({}) as operator:
            self._print_header()
            for _ in range(count):
                self._run_trial(operator, {'mode': 'drive', 'model': str(model)}, model)
        return self.trials

    def run_learning(self, gate: float | None, most: int, *, adapt: bool) -> list[Trial]:
        """
        Collect at random, then train and drive, again and again.

        Parameters
        ----------
        gate : float or None
            Return at which to stop; None: never.
        most : int
            Trials after which to stop, the first one not counted.
        adapt : bool
            Begin with the shipped model in place of random motion: it drives the first trial, and
            training goes on from its weights with nothing but what is recorded here.

        """
        from mbrl_ros.learning.config import TrainingConfig
        from mbrl_ros.learning.pipeline import train_model

        settings = load(find_config('training', 'default'), TrainingConfig)
        earlier = find_model(self._spec.name).parent if adapt else None
        with self._operator(LEARNING_TRUST) as operator:
            self._print_header()
            if earlier is None:
                self._run_trial(operator, {'mode': 'collect', 'signal': 'uniform'}, None)
            else:
                shipped = find_model(self._spec.name)
                self._run_trial(operator, {'mode': 'drive', 'model': str(shipped)}, shipped)
            for number in range(1, most + 1):
                dataset = load_dataset(self._bags, self._spec)
                folder = self._output / 'models' / f'trial_{number:02d}'
                with show.training(self._console, transient=True) as progress:
                    model = train_model(dataset, settings, self._seed, folder, earlier, progress)
                earlier = folder
                trial = self._run_trial(
                    operator, {'mode': 'drive', 'model': str(model.path.resolve())}, model.path,
                    holdout_r2=min(model.evaluation.r2.values()),
                    holdout_error=model.evaluation.k_step[-1]['error'])
                if gate is not None and trial.total_return >= gate:
                    break
        return self.trials

    def _operator(self, trust: dict[str, float]) -> Operator:
        return Operator(self._spec, self._options, {
            'sim_robot': {'seed': self._seed, 'start_paused': True,
                          'pause_after_steps': self._goal.episode_steps},
            'data_logger': {'record': False, 'topics': self._logged_topics(),
                            'output': str((self._output / 'bags').resolve())},
            'mpc_controller': {'autostart': False, **trust}}, self._output / 'logs')

    def _logged_topics(self) -> list[str]:
        goals = {f'{field.topic} {field.type}' for field in self._goal.goal if field.topic}
        return [*LoggerParams.model_fields['topics'].default, *sorted(goals)]

    def _run_trial(self, operator: Operator, parameters: dict[str, Any], model: Path | None,
                   **scores: Any) -> Trial:
        number = len(self.trials)
        # Every trial has random numbers of its own, all of them from the one seed.
        operator.prepare(parameters | {'seed': 1000 * self._seed + number})
        goal = self._goal.draw_goal(np.random.default_rng([self._seed, number]))
        steps = self._goal.episode_steps
        with show.trial(self._console, number, steps) as progress:
            bag = operator.record_run(steps, SILENCE_S, progress=progress,
                                      goal=build_goal(self._goal.goal, goal.tolist()))
        self._bags.append(bag)
        dataset = load_dataset([bag], self._spec)
        earlier_s = self.trials[-1].robot_seconds if self.trials else 0.0
        trial = Trial(
            trial=number, robot_seconds=earlier_s + dataset.seconds,
            total_return=realised_return(dataset, self._spec, self._goal, goal), bag=bag,
            model=model, goal=goal.tolist(),
            final_distance_m=final_distance(dataset, self._spec, self._goal, goal),
            **count_ticks(operator.ticks, steps + 1), **scores)
        self.trials.append(trial)
        self._print_row(trial)
        if dataset.num_transitions < steps:
            self._console.print(f'  [yellow]only {dataset.num_transitions} of {steps} steps were '
                                'recorded; the return counts those[/]')
        for line in dataset.describe_losses():
            self._console.print(f'  [yellow]lost[/] {escape(line)}')
        return trial

    def _print_header(self) -> None:
        away = f'{"away m":>8} ' if self._goal.is_goal_live else ''
        self._console.print(f'{"trial":>5} {"robot s":>8} {"return":>8} {away}'
                            f'{"holdout R2":>11} {"error@25":>9} {"plan p50/p99 ms":>16} '
                            f'{"missed ticks":>13}', style='bold', soft_wrap=True)

    def _print_row(self, trial: Trial) -> None:
        def text(value: float | None, form: str) -> str:
            return '-' if value is None else format(value, form)
        plan = f'{text(trial.quantile_ms(0.5), ".1f")}/{text(trial.quantile_ms(0.99), ".1f")}'
        away = f'{text(trial.final_distance_m, ".3f"):>8} ' if self._goal.is_goal_live else ''
        self._console.print(
            f'{trial.trial:>5} {trial.robot_seconds:>8.1f} {trial.total_return:>8.1f} {away}'
            f'{text(trial.holdout_r2, ".4f"):>11} {text(trial.holdout_error, ".3f"):>9} '
            f'{plan:>16} {f"{trial.missed_ticks}/{trial.ticks}":>13}', highlight=False,
            soft_wrap=True)
