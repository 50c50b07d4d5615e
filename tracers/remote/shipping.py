"""Turn a call into bytes that run where this project is not installed.

nnsight ships a traced block as source, with the functions it uses. Whether one of *our* functions travels with it
depends on how this package was installed: from site-packages it goes by reference and is missing on the server. This
pickler settles that: whatever is defined in `tracers` travels by value, as source, and nothing else of ours may.
Source, never bytecode, so that the server may run another Python version.

What cannot be shipped faithfully is refused here, before anything is sent: a decorated function (its source
would arrive undecorated), `super()` and `nonlocal` (no enclosing scope there), an import of this project inside a
function, a lambda in an argument.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import inspect
import io
import linecache
import sys
import textwrap
import types
from functools import cache
from importlib import import_module

from nnsight.intervention import serialization
from pydantic import BaseModel

from posttrace.tracers.errors import TracerError

OURS = "posttrace.tracers"
"""The package whose functions and classes travel by value."""
THERE = frozenset({"torch", "numpy", "transformers", "nnsight", "cloudpickle"})
"""Packages that a server has in addition to the standard library; their names travel by reference."""


def is_ours(module: str | None) -> bool:
    """Whether what a module defines travels by value.

    Examples
    --------
    >>> is_ours("posttrace.tracers.sites"), is_ours("posttrace.stores"), is_ours(None)
    (True, False, False)
    """
    return f"{module}.".startswith(f"{OURS}.")


class Shipper(serialization.CustomCloudPickler):
    """nnsight's pickler, with `tracers` by value; `sources` holds what was shipped, name -> source.

    Examples
    --------
    >>> shipper = Shipper(io.BytesIO(), protocol=4)                    # doctest: +SKIP
    >>> shipper.dump(read_statements)                                  # doctest: +SKIP
    """

    def __init__(self, file, protocol=serialization.DEFAULT_PROTOCOL):
        super().__init__(file, protocol=protocol)
        self.sources: dict[str, str] = {}

    def reducer_override(self, obj):
        """How functions, classes and modules travel: ours by value, those that a server has by name."""
        if isinstance(obj, types.FunctionType | type | types.ModuleType):
            module = obj.__name__ if isinstance(obj, types.ModuleType) else getattr(obj, "__module__", None)
            root = str(module).partition(".")[0]
            if is_ours(module):
                return self._by_value(obj)
            if root not in THERE and root not in sys.stdlib_module_names:
                name = getattr(obj, "__qualname__", obj.__name__)
                raise _refused(f"{module}.{name}", f"a server does not have the module {root}")
            if isinstance(obj, types.ModuleType):
                # By name, whatever reduction it has of its own (transformers' would rebuild it without its names).
                return (import_module, (obj.__name__,))
        if isinstance(obj, BaseModel) and is_ours(type(obj).__module__):
            return (_new_record, (type(obj), dict(obj)))
        return super().reducer_override(obj)

    def _by_value(self, obj):
        if isinstance(obj, types.ModuleType):
            return (types.ModuleType, (obj.__name__,), _own_names(obj))
        if isinstance(obj, type):
            return self._class_by_value(obj)
        return self._dynamic_function_reduce(obj)

    def _dynamic_function_reduce(self, func):
        name = f"{func.__module__}.{func.__qualname__}"
        source, line, used = _source(func)
        cells = dict(zip(func.__code__.co_freevars, func.__closure__ or (), strict=True))
        names = {key: cells[key].cell_contents for key in used if key in cells}
        names |= {key: func.__globals__[key] for key in used if key in func.__globals__ and key not in cells}
        constants = {key: value for key, value in names.items() if _is_plain(value)}
        self.sources[name] = f"{source}\n{sorted(constants.items())}"
        place = f"{func.__module__.replace('.', '/')}.py"
        made = (source, func.__name__, func.__defaults__, func.__kwdefaults__, None, place, line)
        return (serialization._load_function, made, names, None, None, serialization._fill)

    def _class_by_value(self, cls):
        members = {}
        own = sys.modules[cls.__module__].__file__
        for name, value in vars(cls).items():
            if isinstance(value, types.FunctionType) and value.__code__.co_filename != own:
                continue  # what `@dataclass` generated has no source; it is generated again over there
            if name not in _MADE_BY_PYTHON:
                members[name] = value
        dataclass = None
        if issubclass(cls, BaseModel):
            return (
                _new_class,
                (cls.__name__, (), cls.__module__, cls.__qualname__),
                (_methods(cls), None),
                None,
                None,
                _fill_class,
            )
        if "__dataclass_params__" in vars(cls):
            params = cls.__dataclass_params__
            members["__annotations__"] = dict.fromkeys(members.get("__annotations__", ()), object)
            dataclass = {key: getattr(params, key) for key in ("init", "repr", "eq", "order", "frozen")}
            if any(f.default_factory is not dataclasses.MISSING for f in dataclasses.fields(cls)):
                raise _refused(
                    f"{cls.__module__}.{cls.__qualname__}", "it has a field with a default factory"
                )
        elif type(cls) is not type or "__slots__" in vars(cls):
            raise _refused(
                f"{cls.__module__}.{cls.__qualname__}",
                "only plain classes and dataclasses travel; give its values instead",
            )
        made = (cls.__name__, cls.__bases__, cls.__module__, cls.__qualname__)
        return (_new_class, made, (members, dataclass), None, None, _fill_class)


_MADE_BY_PYTHON = frozenset(
    {"__dict__", "__weakref__", "__module__", "__qualname__", "__doc__", "__dataclass_fields__"}
    | {"__dataclass_params__", "__match_args__", "__firstlineno__", "__static_attributes__", "__hash__"}
)


def code_hash(sources: dict[str, str]) -> str:
    """Hash of shipped code, whatever order it was met in (hex)."""
    total = hashlib.sha256()
    for name, source in sorted(sources.items()):
        total.update(f"{name}\n{source}\n".encode())
    return total.hexdigest()


def shipped(obj) -> tuple[bytes, dict[str, str]]:
    """Return an object as bytes that load without this project, and the sources in them by name.

    Raises
    ------
    TracerError
        Naming what cannot be shipped and why.

    Examples
    --------
    >>> blob, sources = shipped(read_statements)                       # doctest: +SKIP
    """
    buffer = io.BytesIO()
    shipper = Shipper(buffer)
    shipper.dump(obj)
    return buffer.getvalue(), shipper.sources


def _new_class(name, bases, module, qualname):
    """Make a class without members yet, so that its methods may refer to it; runs on the server."""
    made = types.new_class(name, bases)
    made.__module__, made.__qualname__, made.__doc__ = module, qualname, ""
    return made


def _new_record(cls, fields):
    """Make an operation that was checked here; runs on the server."""
    return cls(**fields)


def _set_fields(self, **fields):
    """Set what makes an operation there, without pydantic's checks; runs on the server."""
    self.__dict__.update({**self._defaults, **fields})


def _fill_class(cls, state):
    """Fill in the members of a class, and what `@dataclass` generates; runs on the server."""
    members, dataclass = state
    for name, value in members.items():
        setattr(cls, name, value)
    if dataclass is not None:
        dataclasses.dataclass(**dataclass)(cls)


def _methods(cls) -> dict:
    """Return a pydantic class's parts that travel: fields' defaults and public methods that this project defines."""
    defaults = {name: field.default for name, field in cls.model_fields.items() if not field.is_required()}
    return {"__init__": _set_fields, "_defaults": defaults} | {
        name: value
        for base in reversed(cls.__mro__)
        if is_ours(base.__module__)
        for name, value in vars(base).items()
        if isinstance(value, types.FunctionType) and not name.startswith(("_", "model_"))
    }


def _is_plain(value) -> bool:
    return isinstance(value, int | float | str) or (isinstance(value, tuple) and all(map(_is_plain, value)))


def _own_names(module: types.ModuleType) -> dict:
    """Return what a module defines itself: functions, classes and constants."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("__")
        and (
            getattr(value, "__module__", None) == module.__name__
            or (name.isupper() and (_is_plain(value) or isinstance(value, frozenset)))
        )
    }


@cache
def _source(func) -> tuple[str, int, tuple[str, ...]]:
    """Return a function's source, its line, and the names it takes from outside; refuses what would not run there."""
    name = f"{func.__module__}.{func.__qualname__}"
    try:
        lines, line = inspect.getsourcelines(func)
    except (OSError, TypeError) as error:
        raise _refused(name, f"its source cannot be read ({error})") from None
    source = textwrap.dedent("".join(lines))
    if func.__name__ == "<lambda>":
        raise _refused(name, "it is a lambda; make it a function of its module")
    tree = ast.parse(source)
    (made,) = tree.body
    assert isinstance(made, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    decorators = [ast.unparse(d) for d in made.decorator_list if ast.unparse(d) not in _KEPT]
    if decorators or hasattr(func, "__wrapped__"):
        raise _refused(name, f"its decorator {', '.join(decorators)} would be lost on the server")
    for node in ast.walk(tree):
        if isinstance(node, ast.Nonlocal) or (isinstance(node, ast.Name) and node.id == "super"):
            raise _refused(name, "it uses super() or nonlocal, which have no meaning on the server")
        modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if any(map(is_ours, modules)):
            raise _refused(name, f"it imports {modules[0]} when it runs; import it at the head of its module")
    if func.__code__ not in _codes("".join(linecache.getlines(func.__code__.co_filename))):
        raise _refused(name, "its file was changed after this process had read it; run the command again")
    used = sorted(serialization._function_referenced_names(source))
    return source, line, tuple(used)


@cache
def _codes(text: str) -> frozenset[types.CodeType]:
    """Every piece of code in a module's source, as it would be loaded now."""
    found, left = set(), [compile(text, "<module>", "exec", dont_inherit=True)]
    while left:
        inner = [one for one in left.pop().co_consts if isinstance(one, types.CodeType)]
        found.update(inner)
        left += inner
    return frozenset(found)


_KEPT = frozenset({"property", "staticmethod", "classmethod"})
"""Decorators of methods that are kept."""


def _refused(name: str, why: str) -> TracerError:
    return TracerError(f"{name} cannot be sent to a server: {why}; please report it")
