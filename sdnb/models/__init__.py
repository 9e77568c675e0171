"""Models: loaded by name, from a folder or from one file, or as a skeleton that has shapes and no numbers. A family is one file."""

from ..system.faces import face

__getattr__, __dir__, __all__ = face(
    __name__,
    was="stable_diffusion",
    modules="prompts room samplers skeletons weights",
    drawing="Drawing",
    family="Family Part TextEncoding families family_of known_parts named register unregister",
    hub="find_autoencoder",
    loading="autoencoder load",
    model="Model",
    skeletons="architectures skeleton skeleton_unet",
    stable_diffusion="StableDiffusion",
    weights="refuse_pickle",
)
