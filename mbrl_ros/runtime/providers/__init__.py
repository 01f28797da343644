"""
Providers: one file each, what runs the rollout graph, named by the parameter `provider`.

The module of a provider defines what `Provider` lists. To add one is to add its file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import sys
from typing import Literal, Protocol

import numpy as np

from mbrl_ros.core import plugins
from mbrl_ros.core.errors import ProviderError


@dataclass(frozen=True)
class Form:
    """
    How a provider wants the rollout graph: the function is the same, its speed is not.

    Attributes
    ----------
    loop : bool
        The horizon as a Loop, which keeps the weights of one step in the caches and compiles in
        a tenth of the time; or unrolled, because CUDA graphs allow no Loop.
    split_members : bool
        One matrix product a member, whose weights ONNX Runtime packs once; or one batched
        product, a single launch on a GPU.
    trunk : {'float32', 'float16'}
        Number format of the hidden layers. State, noise and cost are float32 always.

    """

    loop: bool = False
    split_members: bool = False
    trunk: Literal['float32', 'float16'] = 'float32'


class Session(Protocol):
    """A graph, ready to run; several threads may run it at once."""

    def run(self, outputs: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the named outputs for the given inputs."""


class Provider(Protocol):
    """What the module of a provider defines."""

    PRECISIONS: tuple[str, ...]  # the default first

    def problem(self) -> str:
        """Return why this provider cannot run here and what to do, or an empty string."""

    def form(self, precision: str) -> Form:
        """Return how the graph is to be compiled."""

    def num_parallel(self) -> int:
        """Return how many tiles of a population run at once."""

    def open_session(self, model: bytes, precision: str) -> Session:
        """Open a session on a serialised graph; ProviderError if that fails."""


def names() -> list[str]:
    """Return the providers this package knows, here or not."""
    return plugins.names(sys.modules[__name__])


def load(name: str) -> Provider:
    """Return the module of a provider, here or not; SpecError if there is none of that name."""
    module: Provider = plugins.find(sys.modules[__name__], name)
    return module


def find(name: str, precision: str = '') -> tuple[Provider, str]:
    """
    Return a provider and the precision to run with, its default if none is given.

    Raises
    ------
    ProviderError
        If the provider cannot run here (ONNX Runtime alone would quietly take the CPU), or does
        not know the precision.
    SpecError
        If there is no such provider.

    """
    provider = load(name)
    if precision and precision not in provider.PRECISIONS:
        raise ProviderError(f"provider '{name}' knows no precision '{precision}'; "
                            f'allowed: {", ".join(provider.PRECISIONS)}.')
    problem = provider.problem()
    if problem:
        raise ProviderError(f"provider '{name}': {problem}")
    return provider, precision or provider.PRECISIONS[0]


def available() -> list[str]:
    """Return the providers that can run here."""
    return [name for name in names() if not load(name).problem()]
