"""`mbrl-ros replay`: make recorded decisions again, or ask another model what it would do."""

from pathlib import Path
from typing import Annotated, TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from mbrl_ros.control.mpc import Decision
    from mbrl_ros.control.record import Record

TOPIC = 'mpc_controller/decision'
SHOWN_DIFFERENCES = 10


def replay(
    bag: Annotated[Path, typer.Argument(help='rosbag2 folder', show_default=False)],
    at: Annotated[float | None, typer.Option(
        help='The decision nearest to this many seconds after the start of the bag')] = None,
    tick: Annotated[int | None, typer.Option(help='The decision of this control tick')] = None,
    everything: Annotated[bool, typer.Option('--all', help='Every decision')] = False,
    model: Annotated[str, typer.Option(
        help='Another model: a dynamics.onnx, its folder, or a shipped name; or where the '
             'recorded one lies now')] = '',
    output: Annotated[Path | None, typer.Option(
        help='Picture to write, .png, .svg or .pdf; with another model replay_<tick>.png by '
             'default', show_default=False)] = None,
    namespace: Annotated[str, typer.Option(
        help='ROS namespace under which the bag was recorded')] = '',
) -> None:
    """
    Make recorded decisions again on the CPU and compare them, bit for bit.

    A record holds what its decision was made from: observation, commands in flight, warm start,
    random numbers, goal, robot, task and settings, and the hash of the model. With another model,
    see what that would have done at this moment, and what really followed.

    Exit status 1 if a decision comes out differently. One that was not made on the CPU need not be
    exact: its actions must be within a fifth of their range.

    Examples:
      mbrl-ros replay bags/run1 --all

      mbrl-ros replay bags/run1 --at 3.2

      mbrl-ros replay bags/run1 --at 3.2 --model models/mine
    """
    from mbrl_ros.core.paths import find_model

    if (at is not None) + (tick is not None) + everything != 1:
        raise typer.BadParameter('give one of --at SECONDS, --tick NUMBER and --all')
    if everything and output is not None:
        raise typer.BadParameter('a picture shows one decision: --at or --tick, not --all')
    path = find_model(model) if model else None
    records = _read(bag, namespace)
    if everything:
        status = _replay_all(records, path)
    else:
        time_s, record = _choose(bag, records, at, tick)
        status = _replay_one(bag, namespace, time_s, record, path, output)
    raise typer.Exit(status)


def _read(bag: Path, namespace: str) -> list[tuple[float, 'Record']]:
    from mbrl_ros.control.record import decode
    from mbrl_ros.core.errors import BagError
    from mbrl_ros.data.strings import read_strings

    texts = read_strings(bag, TOPIC, namespace, advice=(
        f"The data_logger records decisions if its parameter 'topics' lists '{TOPIC} "
        "std_msgs/msg/String', and the controller is in its mode 'drive'."))
    records = []
    for time_s, text in texts:
        try:
            records.append((time_s, decode(text)))
        except BagError as error:
            raise BagError(f"{bag}: '{TOPIC}', {time_s:.3f} s after the start: {error}") from error
    return records


def _choose(bag: Path, records: list[tuple[float, 'Record']], at: float | None,
            tick: int | None) -> tuple[float, 'Record']:
    from mbrl_ros.core.errors import BagError

    if at is not None:
        return min(records, key=lambda pair: abs(pair[0] - at))
    found = [pair for pair in records if pair[1].inputs.tick == tick]
    if len(found) != 1:
        ticks = [record.inputs.tick for _, record in records]
        times = ', '.join(f'{time_s:.2f}' for time_s, _ in found)
        problem = f'a controller that started anew decided at {times} s' if found else \
            f'no decision; the bag has those of ticks {min(ticks)} to {max(ticks)}'
        raise BagError(f'{bag}: tick {tick}: {problem}. Try: --at SECONDS')
    return found[0]


def _replay_all(records: list[tuple[float, 'Record']], model: Path | None) -> int:
    from rich.console import Console
    from rich.progress import track

    from mbrl_ros.control.replay import changed_tools, compare, hash_of, Replayer, TOLERANCE
    from mbrl_ros.core.errors import ModelError

    hashes = {record.setup.model_hash for _, record in records}
    if model is not None and hash_of(model) not in hashes:
        raise ModelError(f'{model}, hash {hash_of(model)[:16]}, made none of these decisions; '
                         f'{", ".join(sorted(h[:16] for h in hashes))} did. To see what it would '
                         'have done at one moment: --at SECONDS in place of --all')
    num_exact, bad = 0, []
    with Replayer([model] if model else []) as replayer:
        for time_s, record in track(records, 'replay', console=Console(stderr=True),
                                    transient=True):
            found = compare(record, replayer.decide(record))
            num_exact += found.is_exact
            if not found.is_good:
                bad.append(f'tick {record.inputs.tick}, {time_s:.2f} s: '
                           + '; '.join(found.differences))
    typer.echo(f'{len(records)} decisions made again on the CPU: {num_exact} are the same, bit '
               'for bit')
    num_loose = sum(record.setup.provider != 'cpu' for _, record in records)
    if num_loose:
        typer.echo(f'{num_loose} were not made on the CPU: their actions may differ by '
                   f'{TOLERANCE:g} of their range')
    if bad:
        more = [f'and {len(bad) - SHOWN_DIFFERENCES} more'] * (len(bad) > SHOWN_DIFFERENCES)
        typer.echo('\n'.join([f'{len(bad)} differ:', *bad[:SHOWN_DIFFERENCES], *more,
                              *changed_tools(records[0][1].setup)]))
    return int(bool(bad))


def _replay_one(bag: Path, namespace: str, time_s: float, record: 'Record', model: Path | None,
                output: Path | None) -> int:
    from contextlib import closing, ExitStack

    from mbrl_ros.control.replay import find_recorded_model, open_engine
    from mbrl_ros.core.errors import ModelError

    setup = record.setup
    typer.echo(f'tick {record.inputs.tick}, {time_s:.2f} s after the start of the bag, made in '
               f'{record.outcome.plan_s * 1e3:.1f} ms: model {setup.model}, hash '
               f'{setup.model_hash[:16]}, {setup.provider} in {setup.precision}')
    status, again, other = 0, None, None
    with ExitStack() as engines:
        try:
            own = find_recorded_model(setup, [model] if model else [])
            again = engines.enter_context(closing(open_engine(setup, own))).mpc.decide(
                record.inputs)
            status = _report(record, again)
        except ModelError as error:
            if model is None:
                raise
            own = None
            typer.echo(f'not made again: {error}')
        if model is not None and model != own:
            other = engines.enter_context(closing(open_engine(setup, model))).mpc.decide(
                record.inputs)
            _report_other(record, again, other)
        if other is not None or output is not None:
            path = output or Path(f'replay_{record.inputs.tick}.png')
            _draw(path, bag, namespace, record, again, other)
    return status


def _report(record: 'Record', again: 'Decision') -> int:
    from mbrl_ros.control.replay import changed_tools, compare, TOLERANCE

    found = compare(record, again)
    if found.is_exact:
        typer.echo('made again on the CPU: the same, bit for bit')
        return 0
    lines = [*found.differences]
    if found.must_be_exact:
        lines += changed_tools(record.setup)
    else:
        lines.append(f'actions differ by up to {found.deviation:.3g} of their range; allowed for '
                     f"provider '{record.setup.provider}': {TOLERANCE:g}")
    typer.echo('\n'.join([f'made again on the CPU: {"close enough" if found.is_good else "not"} '
                          'the same', *lines]))
    return int(not found.is_good)


def _report_other(record: 'Record', again: 'Decision | None', other: 'Decision') -> None:
    typer.echo(f'model {other.rollout.model_path}, hash {other.rollout.model_hash[:16]}, would '
               'begin with')
    for field, was, would in zip(record.setup.robot.action, record.outcome.actions[0],
                                 other.actions[0], strict=True):
        typer.echo(f'  {field.name} [{field.unit}]: {would:.4g}, recorded {was:.4g}')
    costs = [f'{other.prediction.cost:.4g} in its own eyes']
    if again is not None:
        costs.append(f'{again.prediction.cost:.4g} was foreseen for the recorded plan')
    typer.echo(f'cost of its plan: {"; ".join(costs)}')


def _draw(path: Path, bag: Path, namespace: str, record: 'Record', again: 'Decision | None',
          other: 'Decision | None') -> None:
    from matplotlib.figure import Figure

    from mbrl_ros.cli.replay_plot import draw_decision, what_followed
    from mbrl_ros.core.errors import BagError
    from mbrl_ros.data.dataset import load_dataset

    followed = None
    try:
        followed = what_followed(load_dataset([bag], record.setup.robot, namespace).episodes,
                                 record)
        problem = 'the bag has no gapless motion after it' if followed is None else ''
    except BagError as error:
        problem = str(error)
    if problem:
        typer.echo(f'what followed is not in the picture: {problem}')
    figure = Figure(figsize=(11, 7), layout='constrained')
    draw_decision(figure, record, again, other, followed)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    typer.echo(f'picture: {path}')
