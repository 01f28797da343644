"""What the verbs show: progress bars and tables."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from mbrl_ros.core.robot import RobotSpec

if TYPE_CHECKING:
    from mbrl_ros.learning.evaluation import Evaluation


def _bar(console: Console, *, transient: bool = False) -> Progress:
    return Progress(
        TextColumn('{task.description}'), BarColumn(), TextColumn('{task.fields[info]}'),
        TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=transient)


@contextmanager
def reading(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Show the reading of bags: yields a callback (bag, messages read, messages in all)."""
    with _bar(console) as progress:
        tasks: dict[str, TaskID] = {}

        def update(bag: str, done: int, total: int) -> None:
            if bag not in tasks:
                tasks[bag] = progress.add_task(f'read {Path(bag).name}', total=total, info='')
            progress.update(tasks[bag], completed=done)
        yield update


@contextmanager
def training(console: Console, *, transient: bool = False
             ) -> Iterator[Callable[[int, int, float], None]]:
    """Show training: yields a callback (step, most steps, best holdout loss)."""
    with _bar(console, transient=transient) as progress:
        task = progress.add_task('train', total=None, info='')

        def update(step: int, most: int, loss: float) -> None:
            progress.update(task, completed=step, total=most,
                            info=f'step {step}, holdout loss {loss:.3f}')
        yield update
        # Early stopping ends well before the most steps; a bar left at a third looks like failure.
        progress.update(task, total=progress.tasks[0].completed)


@contextmanager
def trial(console: Console, number: int, steps: int) -> Iterator[Callable[[int], None]]:
    """Show a trial: yields a callback (observations so far)."""
    with _bar(console, transient=True) as progress:
        task = progress.add_task(f'trial {number}', total=steps + 1, info='')
        yield lambda done: progress.update(task, completed=done)


@contextmanager
def measuring(console: Console) -> Iterator[Callable[[int, int, str], None]]:
    """Show a benchmark: yields a callback (calls done, of how many, what)."""
    with _bar(console, transient=True) as progress:
        task = progress.add_task('measure', total=None, info='')
        yield lambda done, total, what: progress.update(task, completed=done, total=total,
                                                        info=what)


def scores(console: Console, robot: RobotSpec, evaluation: 'Evaluation', title: str) -> None:
    """Print the scores of a model, a row a field, and what they come to."""
    table = Table(title=f'{title} ({evaluation.transitions} transitions)')
    for heading in ('field', 'unit', 'R2', 'NLL', 'in 95 % interval', 'calibration error'):
        table.add_column(heading, justify='left' if heading in {'field', 'unit'} else 'right')
    for field in robot.observation:
        table.add_row(field.name, field.unit, f'{evaluation.r2[field.name]:.4f}',
                      f'{evaluation.nll[field.name]:.2f}',
                      f'{evaluation.coverage_95[field.name]:.0%}',
                      f'{evaluation.calibration_error[field.name]:.3f}')
    console.print(table)
    rows = {int(row['k']): row for row in evaluation.k_step}
    console.print('open-loop error in state deviations: ' + ', '.join(
        f'{rows[k]["error"]:.3g} at {k}' for k in (1, 5, 10, 25) if k in rows)
        + f' (95 % band of the last: {evaluation.k_step[-1]["low"]:.2g} to '
          f'{evaluation.k_step[-1]["high"]:.2g}); recommended horizon {evaluation.horizon}')
    known = {name: evaluation.doubt[key] for name, key in (
        ('Spearman with the error', 'spearman'), ('AUROC out of distribution', 'auroc'))}
    console.print('disagreement of the members: ' + ', '.join(
        f'{name} ' + ('-' if value is None else f'{value:.2f}') for name, value in known.items()))
