"""Finds the app that a command names."""

from __future__ import annotations

import importlib
import os
import sys
import traceback

from pgqueue.app import App
from pgqueue.error_text import one_line
from pgqueue.errors import AppNotFound

_PACKAGE = os.path.dirname(os.path.dirname(__file__))


def load_app(path: str) -> App:
    """Imports `module:attribute` (attribute `app` by default) with the current folder on the path.

    Raises `AppNotFound` that says which part of the path leads nowhere; when the module itself raises, the
    message ends with that error and its line.
    """
    module_name, _, attribute = path.partition(":")
    attribute = attribute or "app"
    if not module_name or not all(part.isidentifier() for part in module_name.split(".")):
        raise AppNotFound(f"{path!r} is no app path: expected module:attribute, such as myapp.tasks:app")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise AppNotFound(
                f"there is no module {error.name!r} (app path {path!r}): run the command from the folder that "
                "holds it, or install it"
            ) from error
        raise AppNotFound(_raised(path, error)) from error
    except (Exception, SystemExit) as error:  # a script that was meant to be run may exit when it is imported
        raise AppNotFound(_raised(path, error)) from error
    for name in attribute.split("."):
        if not hasattr(found, name):
            apps = [key for key, value in vars(found).items() if isinstance(value, App)]
            hint = f"; it has {', '.join(apps)}" if apps else ""
            raise AppNotFound(f"module {module_name!r} has no {name!r} (app path {path!r}){hint}")
        found = getattr(found, name)
    if not isinstance(found, App):
        raise AppNotFound(f"{path!r} is a {type(found).__name__}, not a pgqueue.App")
    return found


def path_of(app: App) -> tuple[str, tuple[str, ...]]:
    """Where another process finds an app that lives in this one: its path, and the modules of its tasks.

    Raises `AppNotFound` when the app, or one of its tasks, is in no module that can be imported.
    """
    modules = tuple(dict.fromkeys(task.__module__ for task in app.tasks.values()))
    for name, module in list(sys.modules.items()):
        if name != "__main__":
            for attribute, value in list(getattr(module, "__dict__", {}).items()):
                if value is app and "__main__" not in modules:
                    return f"{name}:{attribute}", modules
    raise AppNotFound(
        "tasks with executor='process' run in processes that import the app: define it, and its tasks, at the top "
        "of a module, not in a function or in the script that is run"
    )


def _raised(path: str, error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    # the innermost frame of the user's own code, not of the import machinery or of what refuses a task's option
    places = [
        frame
        for frame in frames
        if "importlib" not in frame.filename and not frame.filename.startswith(_PACKAGE)
    ]
    where = f" ({places[-1].filename}, line {places[-1].lineno})" if places else ""
    return f"app path {path!r}: importing it raised {type(error).__name__}: {one_line(error)}{where}"
