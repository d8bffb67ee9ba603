"""Registers LION as soon as transformers is imported; importing this package alone imports neither it nor torch.

Auto classes and pipelines cannot be used before `import transformers` has returned, and by then LION is registered: a
finder on `sys.meta_path`, where Python has its hooks for imports, calls `register` when the module's code has run.
Nothing of transformers is replaced. If transformers is imported already, `register` is called at once.

Registering costs some seconds: the Auto classes of processors and the pipelines import transformers' models. `lion
--help`, and programs that only ask the package for its version or its example's folder, need none of it.
"""

import sys
import threading
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

REGISTRY = "transformers"
PACKAGE = __name__.rpartition(".")[0]


def register() -> None:
    """Register with transformers now."""
    from .registration import register

    register()


def register_with_transformers() -> None:
    """Register now if transformers is imported, or else as soon as it is."""
    if REGISTRY in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, RegisteringFinder())


class RegisteringFinder(MetaPathFinder):
    """Finds nothing by itself; it has what the other finders find call `register` after transformers' import.

    A module of this package may be what imports transformers. It is unfinished then, and `register` needs it, so the
    call waits for the end of the outermost import of the package's own.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.num_running = 0
        self.is_imported = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What the next finder finds, if it is transformers or a module of this package."""
        is_own = fullname.startswith(f"{PACKAGE}.")
        if fullname != REGISTRY and not is_own:
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            self.follow(spec, is_own)
        return spec

    def follow(self, spec: ModuleSpec, is_own: bool) -> None:
        """Have a module's loader, which no other module has, tell when it runs the module's code."""
        execute = spec.loader.exec_module  # type: ignore[union-attr]

        def execute_and_register(module: ModuleType) -> None:
            self.count(is_own)
            try:
                execute(module)
                self.is_imported |= not is_own
            finally:
                if self.count(-is_own) == 0 and self.is_imported:
                    self.finish()

        spec.loader.exec_module = execute_and_register  # type: ignore[union-attr, method-assign]

    def count(self, change: int) -> int:
        """How many modules of the package are being imported, after a change of this number."""
        with self.lock:
            self.num_running += change
            return self.num_running

    def finish(self) -> None:
        """Register, and leave the import system."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        register()
