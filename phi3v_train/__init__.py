"""Fine-tuning and evaluation of vision-language models on conversations directories.

Importing this package loads neither torch nor transformers; once transformers is imported, its Auto classes know
Phi-3-vision (`phi3v_train.models.phi3v.register`).
"""

from typing import TYPE_CHECKING

from phi3v_data.lazy import lazy_names
from phi3v_train.models.phi3v.register import register_with_transformers

if TYPE_CHECKING:
    from phi3v_train.run import Outcome, fine_tune

    __version__: str

_HOMES = {"Outcome": "phi3v_train.run", "fine_tune": "phi3v_train.run"}

__all__ = ["Outcome", "__version__", "fine_tune"]

register_with_transformers()


__getattr__, __dir__ = lazy_names(__name__, _HOMES)
