"""Python functions that options name by their dotted path."""

import importlib
from collections.abc import Callable
from typing import Any

from tasks.errors import InputError


def load_callable(path: str, option: str) -> Callable[..., Any]:
    """The callable that `package.module:function` names; raises InputError, naming the option, if there is none."""
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise InputError(f"{option} {path!r}: expected `package.module:function`.")
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{option} {path!r}: {error}. The module must be importable where the stage runs.") from error
    if not callable(found):
        raise InputError(f"{option} {path!r} is a {type(found).__name__}, expected a function.")
    return found
