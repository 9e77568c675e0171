"""What each `network_module` reads of `network_args`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..recipe import Recipe

CONVOLUTIONS = ("conv_dim", "conv_alpha")
DROPOUTS = ("rank_dropout", "module_dropout")
LORA_PLUS = ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")
BLOCK_DIMS = ("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas")
BLOCK_RATES = ("down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold")
LYCORIS = tuple(
    "algo preset dropout use_tucker use_cp use_conv_cp disable_conv_cp use_scalar block_size train_norm constraint constrain "
    "rescaled dora_wd wd_on_output full_matrix bypass_mode rs_lora unbalanced_factorization decompose_both factor train_t5xxl".split()
)
PRODUCTS = ("use_tucker", "verbose", "exclude_patterns", "include_patterns", "network_reg_lrs", "network_reg_dims")
OF_THEIR_OWN = ("lycoris.kohya", "networks.dylora", "networks.loha", "networks.lokr", "networks.oft")
"""Modules whose adapters are not peft's."""
SEVERAL_RATES = ("networks.loha", "networks.lokr")
"""Modules that give each text encoder a rate of its own."""
READ = {
    "networks.lora": (*CONVOLUTIONS, *DROPOUTS, *LORA_PLUS, *BLOCK_DIMS, *BLOCK_RATES),
    "networks.lora_fa": (*CONVOLUTIONS, *DROPOUTS, *BLOCK_DIMS, *BLOCK_RATES),
    "networks.dylora": ("unit", "conv_dim", *LORA_PLUS),
    "networks.loha": (*CONVOLUTIONS, *DROPOUTS, *LORA_PLUS, *PRODUCTS),
    "networks.lokr": (*CONVOLUTIONS, *DROPOUTS, *LORA_PLUS, *PRODUCTS, "factor"),
    "networks.oft": ("enable_all_linear", "enable_conv"),
    "lycoris.kohya": (*CONVOLUTIONS, *DROPOUTS, *LORA_PLUS, *LYCORIS),
}
"""Module -> the names that it looks for. It silently passes over others."""


IDLE = {
    "conv_alpha": (("conv_dim",), "conv_dim"),
    **dict.fromkeys(BLOCK_DIMS[1:], (("block_dims", *BLOCK_RATES[:3]), "block_dims")),
    "block_lr_zero_threshold": (BLOCK_RATES[:3], "down_lr_weight/mid_lr_weight/up_lr_weight"),
}
"""Names that networks.lora reads, and passes over without any of certain others -> these, and the way out."""


def pairs(recipe: Recipe) -> dict[str, str]:
    """`network_args` as a dictionary; of a name that is there twice, the last value."""
    return {name: value for name, _, value in (pair.partition("=") for pair in recipe.network_args)}


def unread(recipe: Recipe) -> list[str]:
    """Names in `network_args` that the module does not look for."""
    known = BLOCK_RATES if recipe.dim_from_weights else READ.get(recipe.network_module or "networks.lora")
    return [] if known is None else [name for name in pairs(recipe) if name not in known]


def idle(recipe: Recipe) -> list[tuple[str, str]]:
    """Names in `network_args` that do nothing, as another is missing, each with that one."""
    given = {name: value for name, value in pairs(recipe).items() if name not in unread(recipe)}
    if recipe.network_module not in (None, "networks.lora", "networks.lora_fa"):
        return []
    return [(name, wanted) for name, (others, wanted) in IDLE.items() if name in given and not given.keys() & set(others)]
