"""`mbrl-ros promote` and `mbrl-ros rollback`: another model for the controllers, and back."""

from pathlib import Path
from typing import Annotated, Any, TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from mbrl_ros.core.robot import RobotSpec
    from mbrl_ros.core.task import TaskSpec
    from mbrl_ros.learning.comparison import Check, Limits
    from mbrl_ros.learning.model_store import Entry
    from mbrl_ros.runtime.artifact import Artifact

RELOAD = 'ros2 service call /mpc_controller/reload_model std_srvs/srv/Trigger'
COLOURS = {'better': 'green', 'no worse': 'green', 'not shown': 'yellow', 'worse': 'red'}


def promote(
    new: Annotated[str, typer.Argument(help='Folder of the new model', show_default=False)],
    over: Annotated[str, typer.Option(
        help='Folder that controllers load, or a shipped name; made if there is none',
        show_default=False)],
    on: Annotated[list[Path] | None, typer.Option(
        help='Compare on this bag, which neither was trained on (repeatable); by default on what '
             'NEW held out and OLD was not trained on, the newest bags first')] = None,
    robot: Annotated[str, typer.Option(help='Robot spec: a name or a .yaml path')] = 'cartpole',
    task: Annotated[str, typer.Option(
        help="Task to simulate; by default the robot's, if one is shipped")] = '',
    sim: Annotated[bool, typer.Option(help='Drive both in simulation, if the robot has one')
                   ] = True,
    episodes: Annotated[int, typer.Option(min=1, help='Episodes of each in simulation')] = 5,
    error_margin: Annotated[float, typer.Option(
        min=0.0, help='No worse: open-loop error larger by at most this share')] = 0.05,
    calibration_margin: Annotated[float, typer.Option(
        min=0.0, help='No worse: mean absolute calibration error larger by at most this')] = 0.03,
    return_margin: Annotated[float, typer.Option(
        min=0.0, help='No worse: mean return lower by at most this share of the old')] = 0.05,
    confidence: Annotated[float, typer.Option(
        min=0.5, max=0.999, help='How sure it has to be on held-out data')] = 0.95,
    force: Annotated[str, typer.Option(
        metavar='REASON', help='Compare nothing; the reason goes into the history')] = '',
    namespace: Annotated[str, typer.Option(
        help='ROS namespace under which the bags were recorded')] = '',
    seed: Annotated[int, typer.Option(
        min=0, help='Of particles, bootstrap and episodes')] = 0,
    json_output: Annotated[bool, typer.Option('--json', help='Print JSON')] = False,
) -> None:
    """
    Replace a model by a new one, if that is better where neither was trained.

    Better: on held-out data, its open-loop error or its calibration error is smaller, and the
    other one is no worse, each with the confidence asked for (paired bootstrap over stretches of
    data, of which there must be 8 of about 25 steps; the newest 40 are enough; without --on the
    calibration can only speak against NEW, which was fitted there); and in simulation its mean
    return is no worse, episodes beginning alike. The old model stays in the history: see
    `mbrl-ros rollback`. Exit status: 0 promoted, 1 refused, and then nothing has changed.

    Examples:
      mbrl-ros promote models/new --over models/mine

      mbrl-ros promote models/new --over models/mine --on bags/today --no-sim
    """
    import json

    from rich.console import Console

    from mbrl_ros.core.paths import find_model, MODEL_FILE
    from mbrl_ros.core.robot import load_robot
    from mbrl_ros.learning import comparison, model_store
    from mbrl_ros.runtime import artifact

    console = Console(stderr=json_output)
    spec = load_robot(robot)
    model = artifact.load(find_model(new), spec)
    folder = model_store.find_folder(over)
    limits = comparison.Limits(error_margin, calibration_margin, return_margin, confidence)
    gate = _Gate(console, spec, model, limits, seed)
    with model_store.opened(folder) as store:
        if store.finished is not None:
            console.print(f'finished what was cut short: {_sentence(store.finished)}')
        replaced = store.hash
        action: model_store.Action = \
            'adopted' if replaced is None else 'forced' if force else 'promoted'
        if replaced not in (None, model.hash) and not force:
            old = artifact.load(folder / MODEL_FILE, spec)
            gate.compare(old, on or [], namespace, task, episodes if sim else 0)
        facts = {'old': replaced, 'new': model.hash, **({'reason': force} if force else {}),
                 **gate.facts, 'checks': [check.to_dict() for check in gate.checks]}
        if replaced != model.hash and not gate.refusal:
            store.replace(model.path.parent, model.hash, action, facts)
        number = store.number
    if json_output:
        typer.echo(json.dumps(facts | {'promoted': not gate.refusal, 'refusal': gate.refusal,
                                       'number': number}, indent=2))
    if gate.refusal:
        console.print(f'[red]refused[/]: {gate.refusal}. The old model stays in {folder}',
                      soft_wrap=True)
        raise typer.Exit(1)
    done = 'is in place already' if replaced == model.hash else \
        f'{action}: there was none' if action == 'adopted' else action
    console.print(f'model {number or ""} ({model.hash[:8]}) {done}, in {folder}\n'
                  f'next: {RELOAD}\nback: mbrl-ros rollback {folder}', soft_wrap=True)


def rollback(
    old: Annotated[str, typer.Argument(
        help='Folder that controllers load, or a shipped name', show_default=False)],
    to: Annotated[int | None, typer.Option(
        min=1, help='Number of the model; by default the one that the present one replaced',
        show_default=False)] = None,
    list_only: Annotated[bool, typer.Option('--list', help='Show the history')] = False,
    json_output: Annotated[bool, typer.Option('--json', help='Print the history as JSON')] = False,
) -> None:
    """
    Bring back a model that `mbrl-ros promote` replaced.

    Examples:
      mbrl-ros rollback models/mine --list

      mbrl-ros rollback models/mine --to 3
    """
    import json

    from rich.console import Console

    from mbrl_ros.core.errors import ModelError
    from mbrl_ros.learning import model_store

    console = Console(stderr=json_output)
    folder = model_store.find_folder(old)
    history = model_store.read_history(folder)
    if not history:
        raise ModelError(f'{folder}: nothing was promoted here, so there is nothing to go back '
                         f'to. Try: mbrl-ros promote NEW --over {folder}')
    if not list_only:
        with model_store.opened(folder) as store:
            if store.finished is not None:
                console.print(f'finished what was cut short: {_sentence(store.finished)}')
            # Who repeats a command that was cut short does not mean one step further.
            is_repeated = store.finished is not None and store.finished.action == 'rolled back'
            if not (to == store.number if to else is_repeated):
                store.roll_back(to)
            history, number, model_hash = store.history, store.number, store.hash
        console.print(f'model {number} ({(model_hash or "none")[:8]}) is in place, in {folder}\n'
                      f'next: {RELOAD}', soft_wrap=True)
    if json_output:
        typer.echo(json.dumps([entry.model_dump() for entry in history], indent=2))
    elif list_only:
        _show_history(console, history)


class _Gate:
    """The comparison of a new model with an old one, shown as it goes."""

    def __init__(self, console: 'Console', robot: 'RobotSpec', new: 'Artifact', limits: 'Limits',
                 seed: int) -> None:
        self._console, self._robot, self._new = console, robot, new
        self._limits, self._seed = limits, seed
        self.checks: list[Check] = []
        self.facts: dict[str, Any] = {}
        self.refusal = ''

    def compare(self, old: 'Artifact', bags: list[Path], namespace: str, task_name: str,
                episodes: int) -> None:
        """Compare predictions; then, if those allow it, returns of so many episodes."""
        from mbrl_ros.bench.returns import find_task

        task = find_task(self._robot, task_name)
        self._compare_on_data(old, bags, namespace, task)
        if self.refusal or not episodes:
            return
        if self._robot.simulation is None or task is None:
            what = 'the robot spec has no simulation' if task else 'no task is known: give --task'
            self._console.print(f'not simulated: {what}')
        else:
            self._compare_in_simulation(old, task, range(self._seed, self._seed + episodes))

    def _compare_on_data(self, old: 'Artifact', bags: list[Path], namespace: str,
                         task: 'TaskSpec | None') -> None:
        from rich.markup import escape

        from mbrl_ros.cli import show
        from mbrl_ros.learning import comparison, unseen

        steps = task.horizon if task is not None else \
            max(int(model.metadata['horizon']) for model in (old, self._new))
        old_data, new_data = unseen.data_of(old), unseen.data_of(self._new)
        sources = unseen.given_bags(bags, {'the old model': old_data, 'the new model': new_data}) \
            if bags else unseen.held_out_by_both(new_data, old_data)
        with show.reading(self._console) as progress:
            data = unseen.read_unseen(sources, self._robot, steps, namespace, progress)
        for note in data.notes:
            self._console.print(f'[yellow]not used[/] {escape(note)}')
        self.checks = comparison.compare(old, self._new, data.blocks, steps, self._limits,
                                         self._seed, is_fresh=bool(bags))
        self.refusal = comparison.refusal(self.checks)
        transitions = sum(block.num_steps for block in data.blocks)
        self.facts = {'steps': steps, 'bags': list(data.bags), 'stretches': len(data.blocks),
                      'transitions': transitions}
        _show_checks(self._console, self.checks,
                     f'{transitions} transitions, new to both, in {len(data.blocks)} stretches '
                     f'of {", ".join(data.bags)}')

    def _compare_in_simulation(self, old: 'Artifact', task: 'TaskSpec', seeds: range) -> None:
        from mbrl_ros.bench.returns import measure_returns
        from mbrl_ros.cli import show
        from mbrl_ros.learning import comparison

        with show.measuring(self._console) as report:
            before, now = measure_returns([('old', old.path), ('new', self._new.path)],
                                          self._robot, task, seeds, report)
        check = comparison.compare_returns(before, now, self._limits)
        self.refusal = comparison.refusal(self.checks, [check])
        self.checks = [*self.checks, check]
        self.facts |= {'task': task.name, 'old_returns': before, 'new_returns': now}
        _show_checks(self._console, [check], f'task {task.name}')


def _show_checks(console: 'Console', checks: 'list[Check]', title: str) -> None:
    from rich.table import Table

    table = Table(title=title)
    for heading in ('measure', 'old', 'new', 'new at worst', 'limit', 'verdict'):
        table.add_column(heading, justify='left' if heading in {'measure', 'verdict'} else 'right')
    for check in checks:
        numbers = (check.old, check.new, check.at_worst, check.limit)
        table.add_row(check.measure, *(f'{number:.4g}' for number in numbers),
                      f'[{COLOURS[check.verdict]}]{check.verdict}[/]')
    console.print(table)


def _show_history(console: 'Console', history: 'list[Entry]') -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title='history, oldest first')
    for heading in ('time (UTC)', 'what', 'model', 'hash', 'in place of', 'because'):
        table.add_column(heading, justify='right' if heading in {'model', 'in place of'}
                         else 'left')
    for entry in history:
        checks = ', '.join(f"{check['measure']}: {check['verdict']}"
                           for check in entry.details.get('checks', ()))
        because = entry.details.get('reason') or checks
        unfinished = '' if entry.is_installed else 'cut short: the next command finishes it'
        table.add_row(entry.time[:19].replace('T', ' '), entry.action, str(entry.number),
                      entry.hash[:8], str(entry.replaced or '-'),
                      escape('; '.join(filter(None, (because, unfinished)))))
    console.print(table)


def _sentence(entry: 'Entry') -> str:
    there = f' in place of model {entry.replaced}' if entry.replaced else ''
    return f'{entry.action} model {entry.number} ({entry.hash[:8]}){there}'
