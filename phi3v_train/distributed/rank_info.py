"""Which process of a run this is."""

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RankInfo:
    """Which process this is: `rank` of all, `local_rank` on its machine."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    @classmethod
    def from_environment(cls) -> "RankInfo":
        """From the variables that torchrun and our own launcher set."""
        read = os.environ.get
        return cls(int(read("RANK", "0")), int(read("LOCAL_RANK", "0")), int(read("WORLD_SIZE", "1")))

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0


def master() -> tuple[str, int]:
    """Address and port where the processes meet, as the launcher set them."""
    return os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "29500"))
