"""Where config/ and models/ are, in a checkout, a pip environment and a colcon workspace alike."""

from functools import cache
import os
from pathlib import Path

from mbrl_ros.core.errors import SpecError

MODEL_FILE = 'dynamics.onnx'  # in every folder of a model


@cache
def share_dir() -> Path:
    """
    Return the folder that holds config/, launch/ and models/.

    An installed package finds `share/mbrl_ros` beside one of its own parent folders (pip: the
    environment; colcon: the install prefix); a checkout is its own share folder.
    """
    here = Path(__file__).resolve()
    for parent in here.parents:
        if (parent / 'config' / 'robots').is_dir() and (parent / 'package.xml').is_file():
            return parent
        if (parent / 'share' / 'mbrl_ros' / 'config').is_dir():
            return parent / 'share' / 'mbrl_ros'
    raise SpecError(
        f'no share/mbrl_ros folder above {here}: the package is only partly installed. '
        'Try: pip install --force-reinstall mbrl_ros, or colcon build again.')


def cache_dir() -> Path:
    """
    Return where made things are kept that can be made anew: below $XDG_CACHE_HOME, or ~/.cache.

    Raises
    ------
    RuntimeError
        For a user without a home.

    """
    base = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(base) / 'mbrl_ros'


def find_config(kind: str, name: str) -> Path:
    """
    Resolve a short name or a path to a YAML file.

    Parameters
    ----------
    kind : str
        Folder below config/, such as 'robots' or 'tasks'.
    name : str
        Name of a shipped file without its ending, or a path that ends in .yaml.

    Raises
    ------
    SpecError
        If there is no such file; the text lists the shipped names.

    """
    if name.endswith(('.yaml', '.yml')):
        path = Path(name)
        if path.is_file():
            return path
    path = share_dir() / 'config' / kind / f'{name}.yaml'
    if path.is_file():
        return path
    known = ', '.join(sorted(p.stem for p in path.parent.glob('*.yaml')))
    raise SpecError(
        f"no {kind} file '{name}'. Known names: {known}; or give the path of a .yaml file.")


def find_model(name: str) -> Path:
    """Resolve a robot name (its shipped model), a folder or a file to a dynamics.onnx path."""
    for place in (Path(name), share_dir() / 'models' / name):
        path = place / MODEL_FILE if place.is_dir() else place
        if path.is_file():
            return path
    known = ', '.join(sorted(p.parent.name for p in
                             (share_dir() / 'models').glob('*/dynamics.onnx')))
    raise SpecError(
        f"no model '{name}': expected a dynamics.onnx file, a folder holding one, or one of the "
        f'shipped models: {known or "none"}.')
