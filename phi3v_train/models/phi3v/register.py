"""Registers Phi-3-vision with transformers' Auto classes, without importing either before it is needed.

`import phi3v_train` arranges that `register` runs as soon as transformers has been imported, or at once if it has been
already. So these two lines are enough, in either order, and a command line that never needs a model stays light:

    import phi3v_train
    from transformers import AutoModelForImageTextToText, AutoProcessor
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

MODEL_TYPE = "phi3_v"


def register() -> None:
    """Register configuration, processors and model; a second call changes nothing."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

    # From its own module: by its public name, some releases hand out a stand-in where torchvision is missing.
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    from phi3v_train.models.phi3v.configuration_phi3_v import Phi3VConfig
    from phi3v_train.models.phi3v.image_processing_phi3_v import Phi3VImageProcessor
    from phi3v_train.models.phi3v.modeling_phi3_v import Phi3VForConditionalGeneration
    from phi3v_train.models.phi3v.processing_phi3_v import Phi3VProcessor

    AutoConfig.register(MODEL_TYPE, Phi3VConfig, exist_ok=True)
    # One class answers for both backends, so that transformers never looks for torchvision.
    backends = {"pil": Phi3VImageProcessor, "torchvision": Phi3VImageProcessor}
    AutoImageProcessor.register(Phi3VConfig, image_processor_classes=backends, exist_ok=True)
    AutoProcessor.register(Phi3VConfig, Phi3VProcessor, exist_ok=True)
    AutoModelForCausalLM.register(Phi3VConfig, Phi3VForConditionalGeneration, exist_ok=True)
    AutoModelForImageTextToText.register(Phi3VConfig, Phi3VForConditionalGeneration, exist_ok=True)


def register_with_transformers() -> None:
    """Call `register` now if transformers is imported, else right after its import.

    Without torch (an installation that only prepares data) nothing is registered.
    """
    if find_spec("torch") is None:
        return
    if "transformers" in sys.modules:
        register()
    elif not any(isinstance(finder, _TransformersFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TransformersFinder())


class _TransformersFinder(MetaPathFinder):
    """Import finder that runs `register` after transformers has been imported.

    It remains installed until then, since some code looks the package up without importing it. If one of our own
    modules imports transformers, `register` waits for the outermost of them, which must be fully loaded.
    """

    def __init__(self) -> None:
        self.num_running = 0

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "transformers" and not fullname.startswith(f"{__package__}."):
            return None
        for finder in [finder for finder in sys.meta_path if finder is not self]:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    self._follow(spec.loader)
                return spec
        return None

    def _follow(self, loader: Loader) -> None:
        """Let `register` run after `loader` has executed its module.

        The loader object is kept, as others (importlib.resources, transformers' lazy module) look at it.
        """
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            self.num_running += 1
            try:
                execute(module)
            finally:
                self.num_running -= 1
            if not self.num_running and "transformers" in sys.modules and self in sys.meta_path:
                sys.meta_path.remove(self)
                register()

        loader.exec_module = exec_module  # type: ignore[method-assign]  # this instance only
