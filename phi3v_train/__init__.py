"""Fine-tuning and evaluation of Phi-3-vision on a conversations directory.

Importing this package loads neither torch nor transformers; once transformers is imported, its Auto classes know the
model (`phi3v_train.models.phi3v.register`).
"""

from phi3v_train.models.phi3v.register import register_with_transformers

register_with_transformers()
