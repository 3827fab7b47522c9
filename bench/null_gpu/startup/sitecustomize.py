"""Python runs this at its start. When the program imports torch, its small tensors get real values on the null GPU."""

import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

HERE = str(Path(__file__).parent)


class After(MetaPathFinder):
    """Finds one module as usual, and calls a function after its import."""

    def __init__(self, module: str, do: Callable[[], None]) -> None:
        self.module = module
        self.do = do

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:  # noqa: D102 - inherited
        if fullname != self.module:
            return None
        # Libraries look for a module before they import it, so this finder stays until the import.
        others = [each for each in sys.meta_path if each is not self]
        spec = next(filter(None, (each.find_spec(fullname, path, target) for each in others)), None)
        if spec is not None and spec.loader is not None:
            spec.loader = Added(spec.loader, self)
        return spec


class Added(Loader):
    """Loads a module, then calls the function."""

    def __init__(self, modules: Any, finder: After) -> None:
        self.modules = modules
        self.finder = finder

    def create_module(self, spec: ModuleSpec) -> Any:  # noqa: D102 - inherited
        return self.modules.create_module(spec)

    def exec_module(self, module: Any) -> None:  # noqa: D102 - inherited
        sys.meta_path.remove(self.finder)
        module.__spec__.loader = module.__loader__ = self.modules
        self.modules.exec_module(module)
        self.finder.do()


def begin() -> None:
    """Start the null GPU's part in this process, now that torch is imported."""
    from lorabench.bench.null_gpu import inside

    inside.begin()


def run_the_one_that_is_hidden() -> None:
    """Run the sitecustomize.py that this one hides, if there is one."""
    spec = PathFinder.find_spec("sitecustomize", [each for each in sys.path if each != HERE])
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(module_from_spec(spec))


sys.meta_path.insert(0, After("torch", begin))
run_the_one_that_is_hidden()
