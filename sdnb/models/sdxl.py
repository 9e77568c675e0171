"""Stable Diffusion XL (Podell et al. 2023): two text encoders side by side, and a U-Net that is told of the pictures' sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

from .family import PLAIN, TextEncoding, register
from .sd import UNET, UNetFamily, clip

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import CLIPTextModelWithProjection

    from ..recipe import Recipe
    from .stable_diffusion import StableDiffusion


class StableDiffusionXL(UNetFamily):
    """Its condition: `context`, both encoders' layer before the last; `pooled`, the second's; and `time_ids`, six sizes."""

    name, title, base = "sdxl", "Stable Diffusion XL", "sdxl"
    repositories = (("stabilityai/stable-diffusion-xl-base-1.0", "462165984030d82259a11f4367a4eed129e94a7b"),)
    parts = (
        UNET
        | clip("conditioner.embedders.0.transformer.")
        | clip("conditioner.embedders.1.model.", number=2, cls="CLIPTextModelWithProjection")
    )
    full_precision = ("vae",)
    version = "sdxl"
    lora_layout = (9, 3, 1)
    pipeline_cls = "StableDiffusionXLPipeline"
    pipeline_settings: ClassVar[dict] = {"add_watermarker": False}

    def fits(self, facts: Mapping[str, Mapping]) -> bool:
        """SDXL has a second text encoder."""
        return super().fits(facts) and "text_encoder_2" in facts

    def text_encoding(self, model: StableDiffusion, recipe: Recipe) -> TextEncoding:
        """SDXL always reads the layer before the last, whatever `clip_skip` says."""
        return TextEncoding.of(recipe)

    def encode_tokens(self, model: StableDiffusion, tokens: Sequence[Tensor], *, clip_skip: int | None = None) -> dict[str, Tensor]:
        """Both encoders, one layer before the last, side by side: (B, 77, D1 + D2), and (B, P)."""
        import torch

        encoder, encoder_2 = model.text_encoder, cast("CLIPTextModelWithProjection", model.text_encoder_2)  # others have no second
        first = encoder(tokens[0].to(encoder.device), output_hidden_states=True)
        second = encoder_2(tokens[1].to(encoder_2.device), output_hidden_states=True)
        context = torch.cat([first.hidden_states[-2].to(second.hidden_states[-2]), second.hidden_states[-2]], dim=-1)
        return {"context": context, "pooled": second.text_embeds}

    def unread(self, model: StableDiffusion, encoding: TextEncoding) -> tuple[Module, ...]:
        """The end of the first encoder; the second's pooled output comes from its last layer."""
        inner = getattr(model.text_encoder, "text_model", model.text_encoder)
        return inner.encoder.layers[-1], inner.final_layer_norm

    def example(self, model: StableDiffusion, batch: int, *, tokens: int = 77) -> dict[str, Tensor]:
        """As wide as the U-Net's configuration says."""
        from .. import inputs

        added: Any = inputs.example(model.unet, batch=batch, tokens=tokens)["added_cond_kwargs"]
        return super().example(model, batch, tokens=tokens) | {"pooled": added["text_embeds"].float()}

    def sizes(self, original: tuple[int, int], crop: tuple[int, int], target: tuple[int, int]) -> dict[str, Tensor]:
        """The six numbers, (6,) in fp32."""
        import torch

        return {"time_ids": torch.tensor([*original, *crop, *target], dtype=torch.float32)}

    def arguments(self, x_t: Tensor, t: Tensor, condition: Mapping[str, Tensor]) -> dict:
        """The U-Net's keyword arguments, with SDXL's pooled text and size embeddings."""
        added = {"text_embeds": condition["pooled"], "time_ids": condition["time_ids"]}
        return super().arguments(x_t, t, condition) | {"added_cond_kwargs": added}

    def prompts(
        self, model: StableDiffusion, texts: Sequence[str], encoding: TextEncoding = PLAIN, negative: str | None = None
    ) -> dict[str, Tensor]:
        """Without a negative prompt there are zeros in its place, as SDXL's pipeline has it; an empty one is encoded."""
        import torch

        condition = self.condition(model, texts, encoding)
        told = {"prompt_embeds": condition["context"], "pooled_prompt_embeds": condition["pooled"]}
        if negative is None:
            return told | {f"negative_{name}": torch.zeros_like(tensor) for name, tensor in told.items()}
        unwanted = self.condition(model, [negative], encoding)
        told["negative_prompt_embeds"] = unwanted["context"].expand_as(condition["context"])
        return told | {"negative_pooled_prompt_embeds": unwanted["pooled"].expand_as(condition["pooled"])}

    def to_original(self, model: StableDiffusion) -> dict[str, Tensor]:
        """Weights under their original names, with an empty tensor `v_pred` if the model predicts v, as others mark it."""
        import torch

        original = super().to_original(model)
        if model.noise_scheduler.config["prediction_type"] == "v_prediction":
            original["v_pred"] = torch.empty(0)
        return original

    def notes(self, model: StableDiffusion) -> dict[str, str]:
        """Metadata of SDXL base 1.0."""
        return super().notes(model) | {
            "ss_base_model_version": "sdxl_base_v1-0",
            "modelspec.architecture": "stable-diffusion-xl-v1-base",
            "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        }


register(StableDiffusionXL())
