"""A Hugging Face Trainer for cross-encoders: models that read two texts at once and score them."""

import lazy_loader

__version__ = "0.1.0"

# The public names stand in `__init__.pyi`. They load when first used: importing the package loads neither torch nor
# transformers.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
