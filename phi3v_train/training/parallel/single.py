"""One process, one device."""

from typing import ClassVar

from phi3v_train.training.parallel.engine import WrongEngineError
from phi3v_train.training.parallel.torch_engine import TorchEngine


class SingleEngine(TorchEngine):
    """Nothing is shared."""

    kind: ClassVar[str] = "single"

    def check(self) -> None:
        if self.group.place.world_size != 1:
            raise WrongEngineError(f"{self.group.place.world_size} processes run, and nothing connects them")
