"""One process, one device."""

from typing import ClassVar

from phi3v_train.training.parallel.engine import WrongEngineError
from phi3v_train.training.parallel.torch_engine import TorchEngine


class SingleEngine(TorchEngine):
    """Nothing is shared."""

    strategy: ClassVar[str] = "single"

    def check(self) -> None:
        if self.group.world_size != 1:
            raise WrongEngineError(f"{self.group.world_size} processes run, but they are not connected")
