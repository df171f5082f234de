"""Models as files: shape, weights and tokenizers, read from every supported format.

`open_model` is the entry point. Nothing here depends on services, shards or plans.
"""

from hearth.converter.errors import ModelError
from hearth.converter.model import Model
from hearth.converter.readers import open_model
from hearth.converter.spec import ModelSpec
from hearth.converter.tokenizers.base import StreamDecoder, Tokenizer

__all__ = [
    "Model",
    "ModelError",
    "ModelSpec",
    "StreamDecoder",
    "Tokenizer",
    "open_model",
]
