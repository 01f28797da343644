"""Finds and reads the MJCF that a robot spec names."""

from importlib.util import find_spec
import logging
from pathlib import Path

import mujoco

from mbrl_ros.core.errors import SpecError
from mbrl_ros.core.paths import share_dir

# MuJoCo would write its warnings to a file MUJOCO_LOG.TXT in whatever folder it is run from.
mujoco.set_mju_user_warning(logging.getLogger(__name__).warning)


def load_mjcf(mjcf: str) -> mujoco.MjModel:
    """
    Load a model.

    Parameters
    ----------
    mjcf : str
        A file below models/, a path, or `package:path`, a file of an installed Python package
        (`gymnasium:envs/mujoco/assets/half_cheetah.xml`). The package is not imported.

    Raises
    ------
    SpecError
        If there is no such file or package, or MuJoCo cannot read it.

    """
    path = _find(mjcf)
    try:
        return mujoco.MjModel.from_xml_path(str(path))
    except ValueError as error:
        raise SpecError(f'{path}: MuJoCo cannot read it: {error}') from error


def _find(mjcf: str) -> Path:
    package, colon, inside = mjcf.partition(':')
    if colon and package.isidentifier() and not Path(mjcf).exists():
        path = _package_folder(package, mjcf) / inside
        if not path.is_file():
            raise SpecError(f"no MJCF '{mjcf}': the installed Python package '{package}' has no "
                            f'file {path}. Try another version of it')
        return path
    shipped = share_dir() / 'models' / mjcf
    path = shipped if shipped.is_file() else Path(mjcf)
    if not path.is_file():
        raise SpecError(f"no MJCF '{mjcf}': neither {shipped} nor a file of that path")
    return path


def _package_folder(package: str, mjcf: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SpecError(f"no MJCF '{mjcf}': it is a file of the Python package '{package}', which "
                        f'is not installed. Try: pip install {package}')
    return Path(spec.submodule_search_locations[0])
