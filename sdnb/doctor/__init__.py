"""The doctor: what is wrong with settings for sd-scripts, and what a training log means."""

from ..system.faces import face

__getattr__, __dir__, __all__ = face(__name__, was="diagnosis", modules="command", diagnosis="Diagnosis diagnose wants_colour")
