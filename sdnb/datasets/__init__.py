"""Pictures with captions: folders and dataset files, buckets of sizes, and the cache of what is encoded."""

from ..system.faces import face

__getattr__, __dir__, __all__ = face(
    __name__,
    was="config",
    modules="cache captions latents validation",
    buckets="Buckets",
    cache="Batch Cache",
    epochs="Epochs",
    folders="BUNDLED Picture Pictures bundled pictures",
)
