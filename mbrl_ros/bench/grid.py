"""What `bench plan` measures: one axis varied at a time around a base, and how time grows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mbrl_ros.bench.workload import Workload

BASE = Workload()
# Where growth is judged: large enough that what a plan pays once no longer counts.
GROWTH = replace(BASE, hidden=(200,) * 4, population=160)
# The published budget of PETS on the half-cheetah's sizes: for a GPU.
PUBLISHED = Workload(hidden=(200,) * 4, num_state=17, num_action=7, population=400, particles=20,
                     horizon=25, iterations=5, noise_exponent=0.0)
AXES = ('population', 'particles', 'horizon', 'iterations', 'network')
GROWTH_SUFFIX = ' growth'


@dataclass(frozen=True)
class Case:
    """
    One point of an axis.

    Attributes
    ----------
    axis : str
        One of `AXES`; 'population growth' or 'horizon growth'; or 'published'.
    value : int or str
        Where on it.
    workload : Workload
        All sizes there.

    """

    axis: str
    value: int | str
    workload: Workload


@dataclass(frozen=True)
class Group:
    """Cases that are measured in turns; `share` is the share of the asked plans they take."""

    cases: tuple[Case, ...]
    share: float = 1.0


def describe_network(workload: Workload) -> str:
    """Return the sizes of an ensemble in words, such as '5 x (3 x 128)'."""
    hidden = workload.hidden
    layers = f'{len(hidden)} x {hidden[0]}' if len(set(hidden)) == 1 else '-'.join(
        map(str, hidden))
    return f'{workload.members} x ({layers})'


def grid(quick: bool) -> list[Group]:
    """Return all groups; a quick grid has the ends of each axis only."""
    axes: dict[str, Sequence[Any]] = {
        'population': (20, 40, 80, 160), 'particles': (5, 10, 20), 'horizon': (10, 25, 50),
        'iterations': (1, 3, 5),
        'network': ((64,) * 3, (128,) * 3, (200,) * 3, (200,) * 4)}
    growth: dict[str, Sequence[int]] = {'population': (80, 160, 320, 640),
                                        'horizon': (10, 20, 40, 80)}
    if quick:
        axes = {'population': (20, 80), 'particles': (5, 10), 'horizon': (10, 25),
                'iterations': (1, 3), 'network': ((128,) * 3, (200,) * 4)}
        growth = {'population': (80, 160), 'horizon': (10, 20)}
    groups = [Group(tuple(_case(axis, axis, BASE, value) for value in values))
              for axis, values in axes.items()]
    # A plan takes a hundred times as long there, and an exponent needs medians only.
    groups += [Group(tuple(_case(axis + GROWTH_SUFFIX, axis, GROWTH, value) for value in values),
                     share=0.1) for axis, values in growth.items()]
    return groups


def published() -> Case:
    """Return the published budget of PETS."""
    return Case('published', 'PETS', PUBLISHED)


def _case(axis: str, field: str, base: Workload, value: Any) -> Case:
    workload = replace(base, **{'hidden' if field == 'network' else field: value})
    return Case(axis, describe_network(workload) if field == 'network' else value, workload)
