"""Find a plug-in by name: one file in a package, no list to edit."""

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

from mbrl_ros.core.errors import SpecError


def names(package: ModuleType) -> list[str]:
    """Return the plug-in names of a package: its modules without a leading underscore."""
    return sorted(m.name for m in iter_modules(package.__path__) if not m.name.startswith('_'))


def find(package: ModuleType, name: str) -> ModuleType:
    """
    Import the plug-in `name` of `package`, or a module of another package by its dotted name.

    Raises
    ------
    SpecError
        If there is none; the text lists the known names.

    """
    kind = package.__name__.rpartition('.')[2]
    if name in names(package):
        return import_module(f'{package.__name__}.{name}')
    if '.' in name:
        try:
            return import_module(name)
        except ImportError as error:
            raise SpecError(f"{kind}: cannot import '{name}': {error}") from error
    raise SpecError(f"{kind}: unknown name '{name}'. Known: {', '.join(names(package))}; "
                    'or the dotted name of a module of your own.')
