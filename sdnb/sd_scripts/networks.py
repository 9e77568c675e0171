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
READ = {
    "networks.lora": (*CONVOLUTIONS, *DROPOUTS, *LORA_PLUS, *BLOCK_DIMS, *BLOCK_RATES),
    "networks.lora_fa": (*CONVOLUTIONS, *DROPOUTS, *BLOCK_DIMS, *BLOCK_RATES),
    "lycoris.kohya": (*CONVOLUTIONS, *DROPOUTS, *LORA_PLUS, *LYCORIS),
}
"""Module -> the names that it looks for. It passes over others without a word."""


def pairs(recipe: Recipe) -> dict[str, str]:
    """`network_args` as a dictionary; of a name that is there twice, the last value."""
    return {name: value for name, _, value in (pair.partition("=") for pair in recipe.network_args)}


def unread(recipe: Recipe) -> list[str]:
    """Names in `network_args` that the module does not look for."""
    known = BLOCK_RATES if recipe.dim_from_weights else READ.get(recipe.network_module or "networks.lora")
    return [] if known is None else [name for name in pairs(recipe) if name not in known]
