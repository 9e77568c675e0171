"""Stable Diffusion models: loaded by name, from a folder or from one file, or as a skeleton that has shapes and no numbers."""

from ..system.faces import face

__getattr__, __dir__, __all__ = face(
    __name__,
    was="stable_diffusion",
    modules="singlefile skeletons",
    loading="load",
    skeletons="architectures skeleton skeleton_unet",
    stable_diffusion="ENCODERS StableDiffusion",
    weights="refuse_pickle",
)
