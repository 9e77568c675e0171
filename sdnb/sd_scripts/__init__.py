"""sd-scripts: its settings, read from any form and printed again, and what it would make of them."""

from ..system.faces import face

__getattr__, __dir__, __all__ = face(
    __name__,
    modules="arguments families findings supported versions",
    arguments="facts int_or_float",
    codepages="encoded",
    findings="EFFECTS FATAL Finding cut in_brief worst_first",
    keywords="Malformed mended take_apart",
    outcome="HANDED NETWORK Outcome SDXL TEXTUAL_INVERSION",
    printing="as_toml flags to_text",
    networks="BLOCK_RATES LORA_PLUS OF_THEIR_OWN READ pairs",
    reading="LEFT_OUT read text_and_encoding text_of without_middle",
    refusals="Refusal of_optimizer of_schedule of_step",
    settings="Settings",
    supported="FIRST_RATE_ALONE differences ignored",
)
