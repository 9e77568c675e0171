"""sd-scripts' training step, as far as its memory goes, for `plan(…, trainer="sd-scripts")`.

Its scripts have U-Nets of their own. They have the same layers as diffusers', but compute attention, join residuals and recompute blocks
in other ways, and each way keeps other tensors. `Dressed` makes a diffusers U-Net on the meta device do as they do, so that one tape
recorder serves both. What else differs is settled before: settings that a script does not act on (`adopt`), the parts that stay on the
card and their precision (`trainers.cast`), and the optimizer (`optimizer`).

Read in sd-scripts at commit 48d368f; `benchmarks.record_memory` runs its own U-Nets, and the tests hold plans to that.

                          train_network, SDXL's    fine_tune, train_db     sdxl_train
    U-Net                 the mixed precision      fp32                    fp32, or full_bf16
    frozen text encoders  the mixed precision, on the card unless SDXL's captions are cached
    VAE                   the mixed precision, or fp32 with no_half_vae, unless latents are cached
    adapters              fp32, or full_bf16
    fused_backward_pass   no effect                no effect               Adafactor steps in backward
    blocks recomputed     SD: resnets and transformers; SDXL: resnets, transformer blocks, down- and upsamplers (reentrant)

Lines: train_network.py 825 (full_bf16), 851 (U-Net), 857 (text encoders), 281 (inputs); sdxl_train.py 471 (full_bf16), 527 (fused);
fine_tune.py 201, 215 (text encoder, VAE); library/original_unet.py 1007 (blocks), 660 (attention); library/sdxl_original_unet.py 339, 373,
660, 803 (blocks), 291 (norms).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .. import optim
from ..schedules import keywords

if TYPE_CHECKING:
    from torch.nn import Module, Parameter
    from torch.optim import Optimizer

    from ..recipe import Recipe


SCRIPTS = {"sdxl": ("sdxl_train.py", "sdxl_train_network.py")}
"""Scripts of a family that has a U-Net of its own there (sdxl_original_unet.py): for all weights, for a LoRA."""
V2 = ("sd2",)
"""Families whose text encoder and U-Net are others: its scripts are told by --v2."""
USUAL_SCRIPTS = ("train_db.py", "train_network.py")


def script_for(recipe: Recipe, family: str) -> str:
    """The script that trains such a recipe from folders of pictures."""
    return SCRIPTS.get(family, USUAL_SCRIPTS)[recipe.wants_lora]


def adopt(recipe: Recipe, family: str) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe without the settings that the script for it does not act on, and what was left out, in sentences."""
    sdxl, script, notes = family in SCRIPTS, script_for(recipe, family), []
    if recipe.steps_in_backward and script != "sdxl_train.py":
        which = "fused_backward_pass" if recipe.fused_backward_pass else "fused_optimizer_groups"
        recipe = recipe.replace(fused_backward_pass=False, fused_optimizer_groups=None)
        notes.append(f"sd-scripts' {script} takes {which} and does nothing with it")
    if recipe.full_bf16 and script == "train_db.py":
        recipe = recipe.replace(full_bf16=False)
        notes.append(f"sd-scripts' {script} takes full_bf16 and does nothing with it: the weights are in fp32")
    if recipe.caches_texts and not sdxl:
        recipe = recipe.replace(cache_text_encoder_outputs=False, cache_text_encoder_outputs_to_disk=False)
        notes.append(f"sd-scripts' {script} caches no captions: the text encoder stays on the card")
    return recipe, tuple(notes)


def optimizer(recipe: Recipe, groups: Iterable[dict]) -> Optimizer:
    """The optimizer of its `get_optimizer` (library/train_util.py 4825): Adafactor is transformers', all others are ours too."""
    if recipe.optimizer_type != "Adafactor":
        return optim.optimizer(recipe, groups, planned=True)
    from transformers.optimization import Adafactor

    arguments: dict[str, Any] = keywords("optimizer_args", recipe.optimizer_args)
    beta1 = arguments.get("beta1")
    # whatever sets the rate needs no memory
    return Adafactor(list(groups), lr=1.0, relative_step=False, scale_parameter=False, beta1=beta1)


def least_bytes(recipe: Recipe, parameters: Iterable[Parameter], state_bytes: int) -> int:
    """Bytes of all gradients, unless they are freed in backward, and of the optimizer's state: transformers' Adafactor keeps a sum for each
    row and column of the last two dimensions; `state_bytes` are those of any other."""
    total = 0 if recipe.optimizer_type == "Adafactor" else state_bytes
    for p in parameters:
        total += 0 if recipe.steps_in_backward else p.numel() * p.element_size()
        if recipe.optimizer_type == "Adafactor":
            total += 4 * (p.numel() // p.shape[-1] + p.numel() // p.shape[-2] if p.ndim > 1 else p.numel())
    return total


class Dressed(ExitStack):
    """A diffusers U-Net that computes as sd-scripts' own inside this context.

    - `family`: `sdxl` for sdxl_original_unet.py, anything else for original_unet.py
    - `attention`: a flag of `trainers.ATTENTION`, or empty for whole matrices
    - `recompute`: gradient_checkpointing
    - `inputs_learn`: train_network.py lets the noised latents require gradients, and with `recompute` the captions' states too
    """

    def __init__(self, unet: Module, family: str, *, attention: str, recompute: bool, inputs_learn: bool) -> None:
        super().__init__()
        sdxl = family in SCRIPTS
        recomputed = {"ResnetBlock2D"} | ({"BasicTransformerBlock", "Downsample2D", "Upsample2D"} if sdxl else {"Transformer2DModel"})
        attend = {"": _whole_matrices, "mem_eff_attn": _in_chunks}.get(attention, _fused_attention)
        for module in list(unet.modules()):
            kind = type(module).__name__
            forward = FORWARDS.get(kind)
            if kind == "Attention":
                forward = attend
            if kind in recomputed and recompute:
                body = partial(forward, module) if forward else module.forward
                self._replace(module, _recomputed(body, reentrant=sdxl))
            elif forward:
                self._replace(module, partial(forward, module))
            if len(getattr(module, "lora_A", ())):  # a layer of peft
                self._replace(module, partial(_adapted, module))
            if sdxl and kind == "ResnetBlock2D":
                for norm in (module.norm1, module.norm2):
                    self._replace(norm, partial(_norm_in_fp32, norm))
        if sdxl:
            self._replace(unet.conv_norm_out, partial(_norm_in_fp32, unet.conv_norm_out))
        if inputs_learn:
            self.callback(unet.register_forward_pre_hook(partial(_inputs_learn, recompute), with_kwargs=True).remove)

    def _replace(self, module: Any, forward: Callable) -> None:
        """Give a module another forward until the context ends."""
        before = vars(module).get("forward")
        module.forward = forward
        self.callback(_put_back, module, before)


def _put_back(module: Module, before: Callable | None) -> None:
    vars(module).pop("forward", None)
    if before is not None:
        vars(module)["forward"] = before


def _inputs_learn(recompute: bool, unet: Module, args: tuple, kwargs: dict) -> None:
    """Let the noised latents require gradients (train_network.py 291), and the captions' states where blocks are recomputed (283)."""
    (args[0] if args else kwargs["sample"]).requires_grad_(True)
    if recompute and kwargs["encoder_hidden_states"].is_leaf:
        kwargs["encoder_hidden_states"].requires_grad_(True)


def _recomputed(body: Callable, *, reentrant: bool) -> Callable:
    """Forward that runs `body` again in backward. Of keywords only the captions' states count, as the reentrant form takes none."""

    def forward(*args, **kwargs):
        if not torch.is_grad_enabled():
            return body(*args, **kwargs)
        if not reentrant:
            return checkpoint(body, *args, use_reentrant=False, **kwargs)
        context = kwargs.get("encoder_hidden_states")
        return checkpoint(body, *args[:2], *([context] if context is not None else []), use_reentrant=True)

    return forward


def _resnet(block: Any, x: Tensor, time: Tensor, *_) -> Tensor:
    """ResnetBlock2D: (B, C, h, w), (B, T) -> (B, D, h, w)."""
    hidden = block.conv1(F.silu(block.norm1(x)))
    hidden = hidden + block.time_emb_proj(F.silu(time))[:, :, None, None]
    hidden = block.conv2(F.silu(block.norm2(hidden)))
    if block.conv_shortcut is not None:
        x = block.conv_shortcut(x)
    return x + hidden


def _norm_in_fp32(norm: Any, x: Tensor) -> Tensor:
    """SDXL's GroupNorm32: with weights in fp32 it computes in fp32 and returns the precision of `x`, under autocast too."""
    whole = norm.weight.dtype == torch.float32
    normed = F.group_norm(x.float() if whole else x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return normed.type(x.dtype) if whole else normed


def _transformer_block(block: Any, x: Tensor, context: Tensor | None = None, encoder_hidden_states: Tensor | None = None, **_) -> Tensor:
    """BasicTransformerBlock: (B, N, C), (B, M, D) -> (B, N, C). What the second norm returns lives until the end."""
    context = encoder_hidden_states if context is None else context
    normed = block.norm1(x)
    x = block.attn1(normed) + x
    normed = block.norm2(x)
    x = block.attn2(normed, context) + x
    return block.ff(block.norm3(x)) + x


def _upsampled(block: Any, x: Tensor, output_size: Any = None, *_) -> Tensor:
    """Upsample2D, which passes through fp32 for bf16: (B, C, h, w) -> (B, C, 2h, 2w)."""
    dtype = x.dtype
    if dtype == torch.bfloat16:
        x = x.float()
    x = F.interpolate(x, scale_factor=2.0, mode="nearest") if output_size is None else F.interpolate(x, size=output_size, mode="nearest")
    if dtype == torch.bfloat16:
        x = x.to(dtype)
    return block.conv(x)


def _fused_attention(attn: Any, x: Tensor, context: Tensor | None = None, **_) -> Tensor:
    """Attention through one kernel, for --sdpa and --xformers: (B, N, C) -> (B, N, C)."""
    q, k, v = _queries(attn, x, x if context is None else context.to(x.dtype))
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return attn.to_out[0](out.transpose(1, 2).flatten(2))


def _queries(attn: Any, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values by head, (B, N, H, d)."""
    q, k, v = attn.to_q(x), attn.to_k(context), attn.to_v(context)
    return q.unflatten(-1, (attn.heads, -1)), k.unflatten(-1, (attn.heads, -1)), v.unflatten(-1, (attn.heads, -1))


def _whole_matrices(attn: Any, x: Tensor, context: Tensor | None = None, **_) -> Tensor:
    """Attention by whole matrices (B·H, N, M), computed without any of the three flags."""
    context = x if context is None else context
    q, k, v = (part.permute(0, 2, 1, 3).reshape(-1, part.shape[1], part.shape[3]) for part in _queries(attn, x, context))
    room = torch.empty(len(q), q.shape[1], k.shape[1], dtype=q.dtype, device=q.device)
    scores = torch.baddbmm(room, q, k.transpose(-1, -2), beta=0, alpha=attn.scale)
    del room
    weights = scores.softmax(dim=-1).to(v.dtype)
    out = torch.bmm(weights, v)  # (B·H, N, d)
    out = out.reshape(len(x), attn.heads, *out.shape[1:]).permute(0, 2, 1, 3).flatten(2)
    return attn.to_out[0](out)


def _in_chunks(attn: Any, x: Tensor, context: Tensor | None = None, **_) -> Tensor:
    """Attention in chunks of 512 queries and 1,024 keys, for --mem_eff_attn: of each chunk's matrix nothing is kept."""
    q, k, v = _queries(attn, x, x if context is None else context.to(x.dtype))
    out: Any = _Chunked.apply(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return attn.to_out[0](out.transpose(1, 2).flatten(2))


class _Chunked(torch.autograd.Function):
    """Storages of an attention in chunks: those kept for backward, and in backward those of one chunk."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        sums, largest = (torch.empty(*q.shape[:-1], 1, dtype=q.dtype, device=q.device) for _ in range(2))
        out = torch.zeros_like(q)
        chunk = [torch.empty(*q.shape[:2], min(512, q.shape[2]), min(1024, k.shape[2]), dtype=q.dtype, device=q.device) for _ in range(2)]
        del chunk
        ctx.save_for_backward(q, k, v, out, sums, largest)
        return out

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, *_ = ctx.saved_tensors
        results = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        chunk = [torch.empty(*q.shape[:2], min(512, q.shape[2]), min(1024, k.shape[2]), dtype=q.dtype, device=q.device) for _ in range(5)]
        del chunk
        return results


def _adapted(layer: Any, x: Tensor, *_) -> Tensor:
    """LoRAModule (networks/lora.py 90): (…, C) -> (…, D). The adapter reads `x` as it is, and its result is scaled twice."""
    name = layer.active_adapters[0]
    added = layer.lora_B[name](layer.lora_A[name](x))
    return layer.base_layer(x) + added * 1.0 * layer.scaling[name]


FORWARDS: dict[str, Callable] = {"ResnetBlock2D": _resnet, "BasicTransformerBlock": _transformer_block, "Upsample2D": _upsampled}
"""Forward of each class of diffusers that computes differently there."""
