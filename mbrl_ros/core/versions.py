"""Which versions of packages are installed here."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
import platform


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the version of Python and of each package that is installed, by name."""
    found = {'python': platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
