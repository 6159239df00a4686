"""Python functions that users name as "package.module:function" or "path/to/file.py:function"."""

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
    """The function that "package.module:function" or "path/to/file.py:function" means.

    Raises ConfigError where there is none, or where its module fails when imported.
    """
    module_name, _, function = place.rpartition(":")
    if not module_name or not function:
        raise ConfigError(
            f"{name}: wanted python:package.module:function or python:path/to/file.py:function, found {place!r}"
        )
    if module_name.endswith(".py") and not Path(module_name).is_file():
        raise ConfigError(f"{name}: there is no file {module_name} (the current folder is {Path.cwd()})")
    try:
        module = _module_of_file(module_name) if module_name.endswith(".py") else importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{name}: {module_name} cannot be imported: {said(error)}; a file of your own is named by its path, "
            "as in python:mine.py:score"
        ) from error
    found = getattr(module, function, None)
    if not callable(found):
        known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise ConfigError(f"{name}: {module_name} has no function {function!r}; it has {', '.join(known) or 'none'}")
    return found  # type: ignore[no-any-return]


def _module_of_file(path: str) -> Any:
    """The module in a file, whatever is on Python's path."""
    name = "tercet_function_" + "".join(c if c.isalnum() else "_" for c in str(Path(path).resolve()))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # a name that ends in .py always has a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles of the file look for their module there
    spec.loader.exec_module(module)
    return module


def source_of(module: str) -> str:
    """The file of a module, named as a file or as an import; "" where it has none."""
    if module.endswith(".py"):
        return module
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # loading it says so
        return ""
    return (spec.origin or "") if spec is not None and spec.has_location else ""


def said(error: BaseException) -> str:
    """What an exception of foreign code says, and the place at which it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {error}{place}"
