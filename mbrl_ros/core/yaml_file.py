"""Read a YAML file into a validated value; errors name file, line, field and allowed values."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, model_validator, ValidationError
from pydantic_core import PydanticCustomError
import yaml

from mbrl_ros.core.errors import SpecError

Location = tuple[Hashable, ...]
# libyaml reads ten times as fast; few builds of PyYAML lack it.
LOADER = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)


class Strict(BaseModel):
    """Base of every value read from a file: frozen, finite numbers only, no unknown key."""

    model_config = ConfigDict(frozen=True, extra='forbid', allow_inf_nan=False)

    @model_validator(mode='before')
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in data:
                if key not in cls.model_fields:
                    raise PydanticCustomError(
                        'unknown_key', "unknown key '{key}'; allowed: {allowed}",
                        {'key': str(key), 'allowed': ', '.join(cls.model_fields)})
        return data


T = TypeVar('T', bound=BaseModel)


def load(path: str | Path, kind: type[T]) -> T:
    """
    Read one YAML file as a value of `kind`.

    Raises
    ------
    SpecError
        If the file is missing, is not YAML, or does not validate. Every problem has its own line:
        file, line number, field, what is wrong and what is allowed.

    """
    path = Path(path)
    try:
        text = path.read_text()
        data = yaml.load(text, Loader=LOADER)
        lines = _line_numbers(yaml.compose(text, Loader=LOADER))
    except OSError as error:
        raise SpecError(f'{path}: {error.strerror}. Check the path.') from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f'{path}: not valid YAML: {error}') from error
    try:
        return kind.model_validate(data if data is not None else {})
    except ValidationError as error:
        raise SpecError(describe(error, path, lines)) from error


def describe(error: ValidationError, source: str | Path,
             lines: dict[Location, int] | None = None) -> str:
    """Spell out a validation error, one line a problem."""
    problems = []
    for item in error.errors():
        location: Location = tuple(item['loc'])
        is_outer = any(len(other['loc']) > len(location) and
                       other['loc'][:len(location)] == location for other in error.errors())
        if item['type'] == 'too_short' and is_outer:
            continue  # pydantic counts the refused items as missing
        if item['type'] == 'unknown_key':
            location = (*location, item['ctx']['key'])
        where = f'{source}'
        known = lines or {}
        for length in range(len(location), 0, -1):
            if location[:length] in known:
                where = f'{source}:{known[location[:length]]}'
                break
        field = '.'.join(str(part) for part in location) or 'file'
        found = item.get('input')
        found = f' (found {found!r})' if isinstance(found, str | int | float) else ''
        problems.append(f'{where}: {field}: {item["msg"]}{found}')
    return '\n'.join(problems)


def _line_numbers(node: yaml.Node | None, prefix: Location = ()) -> dict[Location, int]:
    """Map each key path of a parsed document to its line, counted from one."""
    lines: dict[Location, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if (*prefix, key.value) in lines:  # PyYAML would quietly take the last
                raise yaml.constructor.ConstructorError(
                    None, None, f"'{key.value}' is given twice", key.start_mark)
            lines[(*prefix, key.value)] = key.start_mark.line + 1
            lines |= _line_numbers(value, (*prefix, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*prefix, index)] = value.start_mark.line + 1
            lines |= _line_numbers(value, (*prefix, index))
    return lines
