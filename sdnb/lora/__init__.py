"""LoRA: adapters put into a model, and files that sd-scripts, diffusers, ComfyUI and A1111 know."""

from ..system.faces import face

__getattr__, __dir__, __all__ = face(
    __name__,
    was="files",
    modules="dataset_notes metadata",
    adapters="add beside_any_torchao has_adapters is_added is_of_adapter merge remove set_strength strength",
    arguments="asked groups has_rates",
    files="load save",
    norms="Norms limit_norms scaled",
    starting="check_files start",
)
