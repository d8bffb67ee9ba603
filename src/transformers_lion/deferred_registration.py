"""Registers LION when transformers is imported. Importing this package imports neither transformers nor torch.

A finder on `sys.meta_path`, Python's list of import hooks, calls `register` after the module `transformers` has been
executed, so LION is registered before `import transformers` returns. Nothing in transformers is replaced. If
transformers is already imported, `register` is called immediately.

Registration takes a few seconds, because the Auto classes for processors and the pipelines import models of
transformers. Commands such as `lion --help`, and programs that only read the version or the path of the example
checkpoint, do not need it.
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
    """Register LION now."""
    from .registration import register

    register()


def register_with_transformers() -> None:
    """Register LION now if transformers is already imported, otherwise when it is imported."""
    if REGISTRY in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, RegisteringFinder())


class RegisteringFinder(MetaPathFinder):
    """Import hook that calls `register` after transformers has been imported. Other finders locate the modules.

    If a module of this package imports transformers, that module is not complete yet, but `register` needs it. The call
    is therefore delayed until the outermost import of the package has finished.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.num_running = 0
        self.is_imported = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec from the other finders for transformers and modules of this package, otherwise `None`."""
        is_own = fullname.startswith(f"{PACKAGE}.")
        if fullname != REGISTRY and not is_own:
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            self.follow(spec, is_own)
        return spec

    def follow(self, spec: ModuleSpec, is_own: bool) -> None:
        """Wrap the loader of a module to count running imports and register after the last one."""
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
        """Add `change` to the number of package modules that are being imported, and return the new number."""
        with self.lock:
            self.num_running += change
            return self.num_running

    def finish(self) -> None:
        """Remove this finder and register LION."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        register()
