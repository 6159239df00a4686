"""Python functions of users, named as "package.module:function" or "path/to/file.py:function"."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tercet.errors import ConfigError


def load_function(name: str, place: str) -> Callable[..., Any]:
    """Return the function at `place`: "package.module:function" or "path/to/file.py:function".

    Raises ConfigError, which begins with `name`, if there is none or its module cannot be imported.
    """
    module_name, _, function = place.rpartition(":")
    if not module_name or not function:
        raise ConfigError(
            f"{name}: found {place!r}; wanted python:package.module:function or python:path/to/file.py:function"
        )
    if module_name.endswith(".py") and not Path(module_name).is_file():
        raise ConfigError(f"{name}: there is no file {module_name} (the current folder is {Path.cwd()})")
    try:
        module = load_module(module_name, again=True)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{name}: {module_name} cannot be imported: {error_text(error)}; name a file of your own by its path, "
            "as in python:mine.py:score"
        ) from error
    value = getattr(module, function, None)
    if not callable(value):
        known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise ConfigError(f"{name}: {module_name} has no function {function!r}; it has {', '.join(known) or 'none'}")
    return value  # type: ignore[no-any-return]


def load_module(module: str, again: bool = False) -> Any:
    """Return a module, by its name or the path of its .py file. A file that was loaded before is run `again` or not."""
    if not module.endswith(".py"):
        return importlib.import_module(module)
    name = "tercet_user_" + "".join(c if c.isalnum() else "_" for c in str(Path(module).resolve()))
    if name in sys.modules and not again:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, module)
    assert spec is not None  # a name that ends in .py always has a loader
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded  # dataclasses and pickles of the file look for their module there
    try:
        spec.loader.exec_module(loaded)
    except BaseException:
        del sys.modules[name]
        raise
    return loaded


def source_of(module: str) -> str:
    """Return the file of a module, given by its path or its name; "" if it has none."""
    if module.endswith(".py"):
        return module
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # loading it will say so
        return ""
    return (spec.origin or "") if spec is not None and spec.has_location else ""


def error_text(error: BaseException) -> str:
    """Return the type and message of an exception in a user's code, and the place where it was raised."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {error}{place}"
