"""Every message of `sdnb.doctor.logs` is found in a real log, however a terminal has broken it, and nothing else is."""

import argparse
import ast
import json
import random
import re
import string
import time
import tomllib
import traceback
import unicodedata
import warnings

import pytest

from sdnb.doctor.diagnosis import diagnose
from sdnb.doctor.logs import looks_like_log, read
from sdnb.doctor.messages import MESSAGES
from sdnb.sd_scripts.findings import EFFECTS, Finding

from ..conftest import LESSONS

BY_NAME = {message.name: message for message in MESSAGES}

# What sd-scripts writes in two languages: the English half, the Japanese half.
BILINGUAL = {
    "cpu-offload-turns-checkpointing-on": (
        "cpu_offload_checkpointing is enabled, so gradient_checkpointing is also enabled",
        "cpu_offload_checkpointingが有効になっているため、gradient_checkpointingも有効になります",
    ),
    "block-swap-with-cpu-offload": (
        "AssertionError: blocks_to_swap is not supported with cpu_offload_checkpointing",
        "blocks_to_swapはcpu_offload_checkpointingと併用できません",
    ),
    "adafactor-relative-step-forced": (
        "set relative_step to True because warmup_init is True",
        "warmup_initがTrueのためrelative_stepをTrueにします",
    ),
    "adafactor-relative-step-on": ("relative_step is true", "relative_stepがtrueです"),
    "adafactor-learning-rate-ignored": (
        "learning rate is used as initial_lr",
        "指定したlearning rateはinitial_lrとして使用されます",
    ),
    "adafactor-group-rates-ignored": ("unet_lr and text_encoder_lr are ignored", "unet_lrとtext_encoder_lrは無視されます"),
    "adafactor-scheduler-replaced": ("use adafactor_scheduler", "スケジューラにadafactor_schedulerを使用します"),
    "adafactor-clipping-on": (
        "because max_grad_norm is set, clip_grad_norm is enabled. consider set to 0",
        "max_grad_normが設定されているためclip_grad_normが有効になります。0に設定して無効にしたほうがいいかもしれません",
    ),
    "adafactor-wants-constant-with-warmup": (
        "constant_with_warmup will be good",
        "スケジューラはconstant_with_warmupが良いかもしれません",
    ),
    "adafactor-clip-threshold": ("clip_threshold=1.0 will be good", "clip_thresholdは1.0が良いかもしれません"),
    "adafactor-scheduler-without-adafactor": (
        "AssertionError: adafactor scheduler must be used with Adafactor optimizer",
        "adafactor schedulerはAdafactorオプティマイザと同時に使ってください",
    ),
    "lion-pytorch-not-installed": ("ImportError: No lion_pytorch", "lion_pytorch がインストールされていないようです"),
    "bitsandbytes-not-installed": ("ImportError: No bitsandbytes", "bitsandbytesがインストールされていないようです"),
    "dadaptation-not-installed": ("ImportError: No dadaptation", "dadaptation がインストールされていないようです"),
    "prodigyopt-not-installed": ("ImportError: No Prodigy", "Prodigy がインストールされていないようです"),
    "schedulefree-not-installed": ("ImportError: No schedulefree", "schedulefreeがインストールされていないようです"),
    "xformers-not-installed": ("ImportError: No xformers", "xformersがインストールされていないようです"),
    "wandb-not-installed": ("ImportError: No wandb", "wandb がインストールされていないようです"),
    "bitsandbytes-too-old": (
        "AttributeError: No PagedAdamW8bit. The version of bitsandbytes installed seems to be old. Please install 0.39.0 or later.",
        "PagedAdamW8bitが定義されていません。インストールされているbitsandbytesのバージョンが古いようです。0.39.0以上をインストール"
        "してください。",
    ),
    "automatic-rate-too-low": (
        "learning rate is too low. If using D-Adaptation or Prodigy, set learning rate around 1.0",
        "学習率が低すぎるようです。D-AdaptationまたはProdigyの使用時は1.0前後の値を指定してください: lr=0.0001",
    ),
    "automatic-rate-only-one": (
        "when multiple learning rates are specified with dadaptation (e.g. for Text Encoder and U-Net), only the first one will take "
        "effect",
        "D-AdaptationまたはProdigyで複数の学習率を指定した場合（Text EncoderとU-Netなど）、最初の学習率のみが有効になります: lr=1.0",
    ),
    "optimizer-said-twice": (
        "AssertionError: both option use_8bit_adam and optimizer_type are specified",
        "use_8bit_adamとoptimizer_typeの両方のオプションが指定されています",
    ),
    "sgd-momentum-set": (
        "SGD with Nesterov must be with momentum, set momentum to 0.9",
        "SGD with Nesterovはmomentum指定が必須のため0.9に設定します",
    ),
    "fused-backward-needs-adafactor": (
        "AssertionError: fused_backward_pass currently only works with optimizer_type Adafactor",
        "fused_backward_passは現在optimizer_type Adafactorでのみ機能します",
    ),
    "fused-backward-refuses-accumulation": (
        "AssertionError: fused_backward_pass does not work with gradient_accumulation_steps > 1",
        "fused_backward_passはgradient_accumulation_steps>1では機能しません",
    ),
    "full-precision-mismatch": (
        "AssertionError: full_bf16 requires mixed precision='bf16'",
        "full_bf16を使う場合はmixed_precision='bf16'を指定してください。",
    ),
    "fp8-needs-mixed-precision": (
        "AssertionError: fp8_base requires mixed precision='fp16' or 'bf16'",
        "fp8を使う場合はmixed_precision='fp16'または'bf16'が必要です。",
    ),
    "fp8-needs-newer-torch": ("AssertionError: fp8_base requires torch>=2.1.0", "fp8を使う場合はtorch>=2.1.0が必要です。"),
    "latent-cache-refuses-augmentation": (
        "AssertionError: when caching latents, either color_aug or random_crop cannot be used",
        "latentをキャッシュするときはcolor_augとrandom_cropは使えません",
    ),
    "latent-cache-switched-on": (
        "cache_latents_to_disk is enabled, so cache_latents is also enabled",
        "cache_latents_to_diskが有効なため、cache_latentsを有効にします",
    ),
    "text-cache-refuses-caption-changes": (
        "AssertionError: when caching Text Encoder output, either caption_dropout_rate, shuffle_caption, token_warmup_step or "
        "caption_tag_dropout_rate cannot be used",
        "Text Encoderの出力をキャッシュするときはcaption_dropout_rate, shuffle_caption, token_warmup_step, "
        "caption_tag_dropout_rateは使えません",
    ),
    "text-cache-refuses-weighted-captions": (
        "AssertionError: weighted_captions is not supported when caching text encoder outputs",
        "cache_text_encoder_outputsを使うときはweighted_captionsはサポートされていません",
    ),
    "text-cache-refuses-training": (
        "AssertionError: network for Text Encoder cannot be trained with caching Text Encoder outputs",
        "Text Encoderの出力をキャッシュしながらText Encoderのネットワークを学習することはできません",
    ),
    "text-cache-switched-on": (
        "cache_text_encoder_outputs is enabled because cache_text_encoder_outputs_to_disk is enabled",
        "cache_text_encoder_outputs_to_diskが有効になっているためcache_text_encoder_outputsが有効になりました",
    ),
    "latent-files-ignored": (
        "latents in npz is ignored when color_aug or random_crop is True",
        "color_augまたはrandom_cropを有効にした場合、npzファイルのlatentsは無視されます",
    ),
    "no-pictures": (
        "No data found. Please verify arguments (train_data_dir must be the parent of folders with images)",
        "画像がありません。引数指定を確認してください（train_data_dirには画像があるフォルダではなく、画像があるフォルダの親フォルダを"
        "指定する必要があります）",
    ),
    "folder-without-repeats": ("ignore directory without repeats", "繰り返し回数のないディレクトリを無視します: cats"),
    "captions-missing": (
        "No caption file found for 12 images. Training will continue without captions for these images. If class token exists, "
        "it will be used.",
        "12枚の画像にキャプションファイルが見つかりませんでした。これらの画像についてはキャプションなしで学習を続行します。",
    ),
    "no-regularization-pictures": ("no regularization images", "正則化画像が見つかりませんでした"),
    "clip-skip-with-v2": ("v2 with clip_skip will be unexpected", "v2でclip_skipを使用することは想定されていません"),
    "clip-skip-with-sdxl": ("clip_skip will be unexpected", "SDXL学習ではclip_skipは動作しません"),
    "v2-with-sdxl": (
        "AssertionError: v2 cannot be enabled in SDXL training",
        "SDXL学習ではv2を有効にすることはできません",
    ),
    "zero-terminal-snr-without-v": (
        "zero_terminal_snr is enabled, but v_parameterization is not enabled. training will be unexpected",
        "zero_terminal_snrが有効ですが、v_parameterizationが有効ではありません。学習結果は想定外になる可能性があります",
    ),
    "scale-v-without-v": (
        "ValueError: scale_v_pred_loss_like_noise_pred can be enabled only with v_parameterization",
        "scale_v_pred_loss_like_noise_predはv_parameterizationが有効なときのみ有効にできます",
    ),
    "v-like-loss-with-v": (
        "ValueError: v_pred_like_loss cannot be enabled with v_parameterization",
        "v_pred_like_lossはv_parameterizationが有効なときには有効にできません",
    ),
    "adaptive-noise-without-offset": (
        "ValueError: adaptive_noise_scale requires noise_offset",
        "adaptive_noise_scaleを使用するにはnoise_offsetが必要です",
    ),
    "model-not-found": (
        "model is not found as a file or in Hugging Face, perhaps file name is wrong?",
        "指定したモデル名のファイル、またはHugging Faceのモデルが見つかりません。ファイル名が誤っているかもしれません: model.safetensors",
    ),
}


def frames(*places: str, error: str) -> str:
    """A traceback through these lines of code, with `error` at its end."""
    shown = "".join(f'  File "/sd/library/train_util.py", line {n}, in call\n    {line}\n' for n, line in enumerate(places, 1))
    return f"Traceback (most recent call last):\n{shown}{error}\n"


# What exists in one language, or in two separate lines.
SAMPLES = {
    "block-swap-too-many": [
        "AssertionError: Cannot swap more than 26 blocks. Requested: 40 blocks.",
        "AssertionError: Cannot swap more than 17 double blocks and 36 single blocks. Requested 20 double blocks and 40 single blocks.",
    ],
    "no-training-steps": [
        "  num epochs / epoch数: 0\n  total optimization steps / 学習ステップ数: 0\nsteps: 0it [00:00, ?it/s]",
        "16:17:02-396603 INFO     Total steps: 0\n16:17:02-397236 INFO     Train batch size: 2",
        "16:17:02-398605 INFO     max_train_steps (0 / 2 / 1 * 10 * 1) = 0",
    ],
    "metadata-without-picture": ["AssertionError: no image / 画像がありません: cats/3"],
    "conditioning-pictures-missing": [
        "AssertionError: missing conditioning data for 3 images / 制御用画像が見つかりませんでした: ['a.png', 'b.png', 'c.png']",
        "AssertionError: extra conditioning data for 1 images / 余分な制御用画像があります: {'d'}",
    ],
    "model-lacks-weights": [
        "NotImplementedError: Cannot copy out of meta tensor; no data! Please use torch.nn.Module.to_empty() instead of "
        "torch.nn.Module.to() when moving module from meta to a different device.",
        "  WARNING  x  INFO\n!!! Exception during processing !!! Cannot copy out of meta tensor; no data!",
    ],
    "split-mode-needs-single-blocks": ["AssertionError: train_blocks must be single for split mode"],
    "dim-from-weights-without-weights": [
        frames(
            "network, _ = network_module.create_network_from_weights(1, args.network_weights, vae, text_encoder, unet, **net_kwargs)",
            'if os.path.splitext(file)[1] == ".safetensors":',
            "p = os.fspath(p)",
            error="TypeError: expected str, bytes or os.PathLike object, not NoneType",
        )
    ],
    "picture-smaller-than-the-bucket-steps": [
        frames("ar_error = (reso[0] / reso[1]) - aspect_ratio", error="ZeroDivisionError: division by zero"),
        frames("ar_width_rounded = b_width_rounded / b_height_in_wr", error="ZeroDivisionError: division by zero"),
    ],
    "latents-not-in-cache": ["ValueError: latents_64x96 not found in /data/10_cat/01.npz"],
    "log-folder-refused": [
        "FailedPreconditionError: C:/Users/Zoë/Création/log is not a directory",
        "tensorflow.python.framework.errors_impl.FailedPreconditionError: //BOX/d/#1/log is not a directory",
    ],
    "option-of-another-version": [
        "AttributeError: 'Namespace' object has no attribute 'network_alpha'. Did you mean: 'network_args'?",
    ],
    "python-too-old": [
        frames("def create(modules) -> list[LoRAModule]:", error="TypeError: 'type' object is not subscriptable"),
        "TypeError: unsupported operand type(s) for |: 'type' and 'NoneType'",
    ],
    "checkpoint-use-reentrant-missing": [
        "/usr/lib/torch/utils/checkpoint.py:429: UserWarning: torch.utils.checkpoint: please pass in use_reentrant=True or "
        "use_reentrant=False explicitly. The default value of use_reentrant will be updated to be False in the future.\n"
        "  warnings.warn(\n",
    ],
    "checkpoint-no-input-needs-grad": [
        "/opt/miniconda3/lib/python3.10/site-packages/torch/utils/checkpoint.py:31: UserWarning: None of the inputs have "
        'requires_grad=True. Gradients will be None\n  warnings.warn("None of the inputs have requires_grad=True. Gradients will be None")',
    ],
    "gradient-checkpointing-enable-deprecated": [
        "FutureWarning: `gradient_checkpointing_enable` is deprecated and will be removed in v6. Use `activation_checkpointing_enable` "
        "instead.",
    ],
    "checkpointing-unsupported": ["ValueError: AutoencoderTiny does not support gradient checkpointing."],
    "checkpoint-recomputed-differently": [
        "torch.utils.checkpoint.CheckpointError: torch.utils.checkpoint: A different number of tensors was saved during the original "
        "forward and recomputation.\nNumber of tensors saved during forward: 8",
        "torch.utils.checkpoint.CheckpointError: torch.utils.checkpoint: Recomputed values for the following tensors have different "
        "metadata than during the forward pass.",
    ],
    "cpu-offload-unsupported": [
        "TypeError: UNet2DConditionModel.enable_gradient_checkpointing() got an unexpected keyword argument 'cpu_offload'",
    ],
    "adafactor-in-use": [
        "2026-11-23 22:02:48 INFO     use Adafactor optimizer |             train_util.py:5056\n"
        "                             {'scale_parameter': False, 'relative_step':        \n"
        "                             False, 'warmup_init': False}                       \n",
    ],
    "adafactor-scheduler-without-relative-step": [
        'Traceback (most recent call last):\n  File "/sd-scripts/library/train_util.py", line 5317, in get_scheduler_fix\n'
        '    initial_lr = float(name.split(":")[1])\n                       ~~~~~~~~~~~~~~~^^^\nIndexError: list index out of range\n',
        '    initial_lr = float(name.split(":")[1])\nIndexError: list index out of range\n',
    ],
    "module-not-found": ["ModuleNotFoundError: No module named 'lion_pytorch'"],
    "bitsandbytes-without-gpu-code": [
        r"Error no kernel image is available for execution on the device at line 89 in file D:\bitsandbytes\csrc\ops.cu",
        "bitsandbytes library load error: libcudart.so.12: cannot open shared object file: No such file or directory",
        "RuntimeError: Method 'cadam32bit_grad_fp32' not available in CPU-only version of bitsandbytes.\nReinstall with GPU support",
    ],
    "optimizer-unknown": ["AttributeError: module 'torch.optim' has no attribute 'Adamw'", "ValueError: Unknown optimizer type: dadaptfoo"],
    "automatic-rate-refuses-several": [
        "RuntimeError: Setting different lr values in different parameter groups is only supported for values of 0",
    ],
    "automatic-rate-too-low": ["WARNING  recommend option: lr=1.0 / 推奨は1.0です      train_util.py:4994"],
    "schedulefree-not-in-train-mode": [
        "Exception: Optimizer was not in train mode when step is called. Please insert .train() and .eval() calls on the optimizer.",
    ],
    "scheduler-refuses-warmup": [
        "ValueError: SchedulerType.CONSTANT does not require `num_warmup_steps`. Set None or 0.",
        "ValueError: constant does not require `num_warmup_steps`. Set None or 0.",
    ],
    "adafactor-refuses-warmup": [
        "Traceback (most recent call last):\n"
        '  File "/sd-scripts/library/train_util.py", line 5296, in wrap_check_needless_num_warmup_steps\n'
        '    raise ValueError(f"{name} does not require `num_warmup_steps`. Set None or 0.")\n'
        "ValueError: adafactor:0.0001 does not require `num_warmup_steps`. Set None or 0.\n",
    ],
    "scheduler-needs-steps": ["ValueError: SchedulerType.COSINE requires `num_warmup_steps`, please provide that argument."],
    "scheduler-epoch-deprecated": [
        "UserWarning: The epoch parameter in `scheduler.step()` was not necessary and is being deprecated where possible.",
    ],
    "weight-changed-during-backward": [
        "RuntimeError: one of the variables needed for gradient computation has been modified by an inplace operation: "
        "[torch.cuda.FloatTensor [1280, 1280]], which is output 0 of AsStridedBackward0, is at version 1; expected version 0 instead."
    ],
    "unscaled-twice": ["RuntimeError: unscale_() has already been called on this optimizer since the last update()."],
    "scaler-saw-no-gradient": ["AssertionError: No inf checks were recorded for this optimizer."],
    "trained-weights-in-fp16": ["ValueError: Attempting to unscale FP16 gradients."],
    "fp16-needs-a-gpu": ["ValueError: fp16 mixed precision requires a GPU (not 'cpu')."],
    "bf16-unsupported": ["ValueError: bf16 mixed precision requires PyTorch >= 1.10 and a supported device."],
    "nan-in-latents": ["RuntimeError: NaN detected in latents: /data/10_my cat/01.png\n", "RuntimeError: NaN detected in latents"],
    "nan-in-latents-replaced": ["NaN found in latents, replacing with zeros"],
    "nan-in-text-encoder": ["RuntimeError: NaN detected in text encoder outputs: /data/10_my cat/01.png"],
    "loss-is-nan": [
        "steps:   1%|▏         | 16/1600 [00:12<20:13,  1.31it/s, avr_loss=nan]",
        "steps:   1%|          | 16/1600 [00:12<20:13,  1.31it/s, loss=nan]",
    ],
    "gpu-out-of-memory": [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 7.79 GiB of which "
        "18.44 MiB is free. Process 4242 has 7.76 GiB memory in use. Of the allocated memory 7.51 GiB is allocated by PyTorch",
        "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.70 GiB. GPU 0 has a total capacty of 6.00 GiB of which "
        "0 bytes is free. Of the allocated memory 2.93 GiB is allocated by PyTorch",
        "RuntimeError: CUDA out of memory. Tried to allocate 2.87 GiB (GPU 0; 14.76 GiB total capacity; 8.77 GiB already allocated; "
        "19.75 MiB free; 13.71 GiB reserved in total by PyTorch)",
        "RuntimeError: CUDA out of memory.",
    ],
    "gpu-out-of-memory-in-driver": [
        "RuntimeError: CUDA error: out of memory",
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
    "process-killed": ["subprocess.CalledProcessError: Command '['python', 'train_network.py']' died with <Signals.SIGKILL: 9>."],
    "launcher-reports-failure": [
        "subprocess.CalledProcessError: Command '['/usr/bin/python3', 'train_network.py']' returned non-zero exit status 1.",
    ],
    "accumulation-with-two-models": [
        "gradient_accumulation_steps is 4. accelerate does not support gradient_accumulation_steps when training multiple models "
        "(U-Net and Text Encoder), so something might be wrong",
        "gradient_accumulation_stepsが4に設定されています。accelerateは複数モデル（U-NetおよびText Encoder）の学習時に"
        "gradient_accumulation_stepsをサポートしていないため結果は未知数です",
    ],
    "no-pictures": [
        "No data found. Please verify the metadata file and train_data_dir option.",
        "画像がありません。メタデータおよびtrain_data_dirオプションを確認してください。",
    ],
    "not-a-folder": ["2026-11-23 22:02:48 WARNING  not directory: /data/10_my cat      train_util.py:1974"],
    "text-cache-refuses-training": [
        "AssertionError: cache_text_encoder_outputs is not supported when training text encoder",
        "text encoderを学習するときはcache_text_encoder_outputsはサポートされていません",
        "ValueError: T5XXL is trained, so cache_text_encoder_outputs cannot be used /\n"
        "T5XXL学習時はcache_text_encoder_outputsは使用できません",
    ],
    "text-cache-refuses-caption-changes": [
        "AssertionError: when caching Text Encoder output, shuffle_caption, token_warmup_step or caption_tag_dropout_rate cannot be used",
        "AssertionError: when caching text encoder output, shuffle_caption, token_warmup_step or caption_tag_dropout_rate cannot be used",
    ],
    "block-swap-with-cpu-offload": ["AssertionError: blocks_to_swap is not supported with unsloth_offload_checkpointing"],
    "full-precision-mismatch": ["AssertionError: full_fp16 requires mixed_precision='fp16'"],
    "folder-without-repeats": ["10:32:07-766231 INFO     Error: 'img' does not contain an underscore, skipping..."],
    "model-deleted": [
        "OSError: runwayml/stable-diffusion-v1-5 is not a local folder and is not a valid model identifier listed on "
        "'https://huggingface.co/models'",
        "404 Client Error.\n\nRepository Not Found for url: "
        "https://huggingface.co/stabilityai/stable-diffusion-2-1/resolve/main/model_index.json.\nPlease make sure you",
    ],
    "model-not-found": [
        "OSError: nobody/nothing is not a local folder and is not a valid model identifier listed on 'https://huggingface.co/models'",
        "Repository Not Found for url: https://huggingface.co/api/models/nobody/nothing.",
    ],
    "xformers-cannot-compute": ["NotImplementedError: No operator found for `memory_efficient_attention_forward` with inputs:"],
    "weights-only-refused": ["_pickle.UnpicklingError: Weights only load failed. This file can still be loaded, to do so you have two"],
    "triton-missing": [
        "A matching Triton is not available, some optimizations will not be enabled\nTraceback (most recent call last):\n"
        "ModuleNotFoundError: No module named 'triton'",
        "XPU native library not loaded and triton not available.",
    ],
    "tensorflow-registers-twice": [
        "E0000 00:00:1739486925.821562  176814 cuda_dnn.cc:8310] Unable to register cuDNN factory: Attempting to register factory for "
        "plugin cuDNN when one has already been registered",
        "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
    ],
    "torch-load-weights-only": ["FutureWarning: You are using `torch.load` with `weights_only=False` (the current default value)"],
    "amp-renamed": [
        "FutureWarning: `torch.cuda.amp.autocast(args...)` is deprecated. Please use `torch.amp.autocast('cuda', args...)` instead.",
        "FutureWarning: `torch.cuda.amp.GradScaler(args...)` is deprecated.",
    ],
    "torch-dtype-renamed": ["`torch_dtype` is deprecated! Use `dtype` instead!"],
    "resume-download-deprecated": ["FutureWarning: `resume_download` is deprecated and will be removed in version 1.0.0."],
    "accelerate-uses-defaults": [
        "The following values were not passed to `accelerate launch` and had defaults used instead:\n"
        "\t`--num_processes` was set to a value of `1`\n\t`--dynamo_backend` was set to a value of `'no'`",
    ],
    "prompt-longer-than-77-tokens": [
        "Token indices sequence length is longer than the specified maximum sequence length for this model (103 > 77).",
    ],
    "checkpoint-weights-not-used": [
        "Some weights of the model checkpoint at openai/clip-vit-large-patch14 were not used when initializing CLIPTextModel: ['a']",
    ],
    "gpu-not-in-use": [
        "UserWarning: torch.cuda.amp.GradScaler is enabled, but CUDA is not available.  Disabling.",
        "UserWarning: User provided device_type of 'cuda', but CUDA is not available. Disabling",
    ],
    "model-of-another-family": [
        '    new_checkpoint["time_embedding.linear_1.weight"] = unet_state_dict["time_embed.0.weight"]\nKeyError: \'time_embed.0.weight\'',
        "RuntimeError: Error(s) in loading state_dict for UNet2DConditionModel:\n\tsize mismatch for "
        "up_blocks.2.resnets.1.conv1.bias: copying a param with shape torch.Size([320]) from checkpoint",
    ],
    "model-is-not-sdxl": [
        "RuntimeError: Error(s) in loading state_dict for SdxlUNet2DConditionModel:\n\tMissing key(s) in state_dict: "
        '"label_emb.0.0.weight"',
        frames("if text_encoder2.dtype != torch.float32:", error="AttributeError: 'NoneType' object has no attribute 'dtype'"),
    ],
    "v2-without-a-v2-model": [
        "RuntimeError: Error(s) in loading state_dict for UNet2DConditionModel:\n\tsize mismatch for "
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight: copying a param with shape "
        "torch.Size([320, 768]) from checkpoint, the shape in current model is torch.Size([320, 1024]).",
    ],
    "v2-model-without-v2": [
        "RuntimeError: Error(s) in loading state_dict for UNet2DConditionModel:\n\tsize mismatch for "
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight: copying a param with shape "
        "torch.Size([320, 1024]) from checkpoint, the shape in current model is torch.Size([320, 768]).",
    ],
    "text-encoder-of-another-transformers": [
        "RuntimeError: Error(s) in loading state_dict for CLIPTextModel:\n        Missing key(s) in state_dict: "
        '"text_model.embeddings.position_ids".',
        "RuntimeError: Error(s) in loading state_dict for CLIPTextModel:\n\tUnexpected key(s) in state_dict: "
        '"text_model.embeddings.position_ids".',
    ],
    "vae-file-wrong": [
        'RuntimeError: Error(s) in loading state_dict for AutoencoderKL:\n\tMissing key(s) in state_dict: "encoder.conv_in.weight"',
        "KeyError: 'encoder.conv_in.weight'",
        "RuntimeError: Error(s) in loading state_dict for AutoEncoder:\n\tMissing key(s)",
    ],
    "flux-file-wrong": [
        '    max_double_block_index = max(\n        [int(key.split(".")[1]) for key in keys if '
        'key.startswith("double_blocks.")]\n    )\nValueError: max() arg is an empty sequence',
        'RuntimeError: Error(s) in loading state_dict for T5EncoderModel:\n\tMissing key(s) in state_dict: "shared.weight"',
    ],
    "flux-needs-its-script": [
        "ValueError: Cannot load <class 'diffusers.models.autoencoders.autoencoder_kl.AutoencoderKL'> from flux/vae "
        "because the following keys are missing:",
    ],
    "model-file-broken": [
        "safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge",
        "safetensors_rust.SafetensorError: Error while deserializing: incomplete metadata, file not fully covered",
        "Exception: MetadataIncompleteBuffer",
    ],
    "checkpoint-file-broken": [
        "RuntimeError: PytorchStreamReader failed reading zip archive: failed finding central directory",
        "_pickle.UnpicklingError: invalid load key, '<'.",
        "EOFError: Ran out of input",
    ],
    "model-folder-incomplete": [
        "OSError: Error no file named diffusion_pytorch_model.bin found in directory /models/x.",
        "OSError: stabilityai/x does not appear to have a file named config.json. Checkout 'https://huggingface.co/stabilityai/x/main'",
        "huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name' or 'namespace/repo_name': "
        "'C:/models/x.safetensors'.",
    ],
    "hub-not-reached": [
        "OSError: Can't load tokenizer for 'openai/clip-vit-large-patch14'. If you were trying to load it from "
        "'https://huggingface.co/models', make sure you don't have a local directory with the same name.",
        "OSError: We couldn't connect to 'https://huggingface.co' to load this file",
        "huggingface_hub.utils._errors.LocalEntryNotFoundError: An error happened while trying to locate the file on the Hub",
        "urllib3.exceptions.MaxRetryError: HTTPSConnectionPool(host='huggingface.co', port=443): Max retries exceeded with url: /openai",
        "requests.exceptions.ConnectionError: [WinError 10060]",
    ],
    "model-is-gated": [
        "huggingface_hub.errors.GatedRepoError: 401 Client Error.\n\nCannot access gated repo for url "
        "https://huggingface.co/black-forest-labs/FLUX.1-dev/resolve/main/ae.safetensors.\nAccess to model "
        "black-forest-labs/FLUX.1-dev is restricted.",
    ],
    "lora-weights-do-not-fit": [
        "RuntimeError: Error(s) in loading state_dict for LoRANetwork:\n\tsize mismatch for lora_unet_x.lora_down.weight",
    ],
    "shapes-do-not-multiply": [
        "RuntimeError: mat1 and mat2 shapes cannot be multiplied (154x2048 and 768x320)",
    ],
    "resume-is-no-folder": [
        "ValueError: Tried to find C:/out/my cat.safetensors but folder does not exist",
    ],
    "resume-lacks-a-file": [
        "FileNotFoundError: [Errno 2] No such file or directory: 'D:\\\\kohya_ss\\\\pytorch_model.bin'",
    ],
    "resume-with-other-settings": [
        "ValueError: loaded state dict contains a parameter group that doesn't match the size of optimizer's group",
    ],
    "settings-file-not-utf8": [
        "    config_dict = toml.load(f)\n  File \"toml/decoder.py\", line 156, in load\nUnicodeDecodeError: 'utf-8' codec "
        "can't decode byte 0xb8 in position 1036: invalid start byte",
        "UnicodeDecodeError: 'gbk' codec can't decode byte 0x94 in position 2: illegal multibyte sequence",
    ],
    "text-cannot-be-printed": [
        "UnicodeEncodeError: 'charmap' codec can't encode characters in position 2-5: character maps to <undefined>",
    ],
    "settings-file-not-toml": [
        "toml.decoder.TomlDecodeError: Reserved escape sequence used (line 3 column 1 char 40)",
    ],
    "settings-file-not-found": [
        "INFO     /data/config.toml not found.                train_util.py:4741",
        "ValueError: file not found / ファイルが見つかりません: a.toml",
    ],
    "dataset-config-name-unknown": [
        "voluptuous.error.MultipleInvalid: extra keys not allowed @ data['datasets'][0]['subsets'][0]['repeats']",
    ],
    "dataset-config-value-refused": [
        "voluptuous.error.MultipleInvalid: expected int for dictionary value @ data['datasets'][0]['batch_size']",
    ],
    "bucket-steps-not-divisible": [
        "AssertionError: bucket_reso_steps is 16. it must be divisible by 32.\nbucket_reso_stepsが16です。32で割り切れる必要があります",
        "bucket_reso_stepsが16です。32で割り切れる必要があります",
    ],
    "bucket-range-excludes-resolution": [
        "AssertionError: max_bucket_reso must be equal or greater than resolution / "
        "max_bucket_resoは最大解像度より小さくできません。解像度を小さくするかmin_bucket_resoを大きくしてください",
        "AssertionError: min_bucket_reso must be equal or less than resolution / min_bucket_resoは最小解像度より大きくできません。",
    ],
    "resolution-missing": [
        "AssertionError: resolution is required / resolution（解像度）指定は必須です",
    ],
    "latents-of-different-sizes": [
        "RuntimeError: stack expects each tensor to be equal size, but got [4, 108, 148] at entry 0 and [4, 96, 168] at entry 1",
    ],
    "sizes-differ-in-the-unet": [
        "RuntimeError: Sizes of tensors must match except in dimension 1. Expected size 42 but got size 41 for tensor "
        "number 1 in the list.",
    ],
    "picture-broken": [
        "PIL.UnidentifiedImageError: cannot identify image file '/data/10_cat/._a.png'",
        "OSError: image file is truncated (21 bytes not processed)",
        "ERROR    Error loading file: /data/10_my cat/a.png     train_util.py:2960",
    ],
    "picture-of-another-size": [
        "AssertionError: image too large, but cropping and bucketing are disabled / "
        "画像サイズが大きいのでface_crop_aug_rangeかrandom_crop、またはbucketを有効にしてください: a.png",
        "AssertionError: image size is small / 画像サイズが小さいようです: a.png",
    ],
    "no-batches": [
        "    num_train_epochs = math.ceil(args.max_train_steps / num_update_steps_per_epoch)\nZeroDivisionError: division by zero",
    ],
    "sampling-every-zero": [
        "    if epoch is None or epoch % args.sample_every_n_epochs != 0:\nZeroDivisionError: integer division or modulo by zero",
    ],
    "persistent-workers-of-none": [
        "ValueError: persistent_workers option needs num_workers > 0",
    ],
    "logging-dir-missing": [
        "AssertionError: logging_dir is required when log_with is tensorboard / Tensorboardを使う場合、logging_dirを指定してください",
    ],
    "file-not-found": [
        "FileNotFoundError: [Errno 2] No such file or directory: '/data/sample prompts.txt'",
        'FileNotFoundError: No such file or directory: "/models/x.safetensors"',
    ],
    "file-not-allowed": [
        "PermissionError: [Errno 13] Permission denied: 'config.json'",
    ],
    "disk-full": [
        "OSError: [Errno 28] No space left on device",
        "RuntimeError: [enforce fail at inline_container.cc:588] . PytorchStreamWriter failed writing file data/12: file write failed",
    ],
    "computer-memory-full": [
        "OSError: [WinError 1455] The paging file is too small for this operation to complete. Error loading "
        '"C:\\venv\\cublas64_12.dll" or one of its dependencies.',
        "RuntimeError: [enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to "
        "allocate 26214400 bytes.",
        "MemoryError",
    ],
    "worker-died": [
        "RuntimeError: DataLoader worker (pid(s) 6292, 13416) exited unexpectedly",
        "RuntimeError: DataLoader worker (pid 700) is killed by signal: Killed.",
    ],
    "shared-memory-full": [
        "RuntimeError: DataLoader worker (pid 77) is killed by signal: Bus error. It is possible that dataloader's "
        "workers are out of shared memory.",
    ],
    "torch-without-cuda": [
        "AssertionError: Torch not compiled with CUDA enabled",
        "您正在使用 CPU 版本的 torch，无法正常使用 GPU 加速",
    ],
    "no-gpu-driver": [
        "RuntimeError: Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver",
        "RuntimeError: No CUDA GPUs are available",
        "RuntimeError: CUDA error: invalid device ordinal",
    ],
    "torch-without-this-gpu": [
        "RuntimeError: CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might "
        "be asynchronously reported at some other API call",
        "NVIDIA GeForce RTX 5090 with CUDA capability sm_120 is not compatible with the current PyTorch installation.",
    ],
    "gpu-crashed": [
        "RuntimeError: CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasGemmEx( handle, opa, opb)`",
        "RuntimeError: CUDA error: an illegal memory access was encountered",
        "RuntimeError: cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    ],
    "half-precision-on-the-processor": [
        "RuntimeError: \"addmm_impl_cpu_\" not implemented for 'Half'",
        "RuntimeError: \"LayerNormKernelImpl\" not implemented for 'Half'",
        "RuntimeError: \"slow_conv2d_cpu\" not implemented for 'Half'",
    ],
    "parts-on-two-devices": [
        "RuntimeError: Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!",
    ],
    "precisions-mixed": [
        "RuntimeError: expected scalar type Half but found Float",
        "RuntimeError: mat1 and mat2 must have the same dtype, but got Half and Float",
        "RuntimeError: Input type (float) and bias type (c10::Half) should be the same",
        "RuntimeError: Expected query, key, and value to have the same dtype, but got query.dtype: float",
    ],
    "loss-without-gradient": [
        "RuntimeError: element 0 of tensors does not require grad and does not have a grad_fn",
        "ValueError: optimizer got an empty parameter list",
    ],
    "several-gpus-on-windows": [
        "torch.distributed.DistStoreError: use_libuv was requested but PyTorch was built without libuv support, run "
        "with USE_LIBUV=0 to disable it.",
        "RuntimeError: Distributed package doesn't have NCCL built in",
    ],
    "processes-do-not-meet": [
        "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:1691, unhandled system error, ncclSystemError",
        "RuntimeError: Expected to have finished reduction in the prior iteration before starting a new one.",
    ],
    "lycoris-missing": [
        "ModuleNotFoundError: No module named 'lycoris'",
        "ModuleNotFoundError: No module named 'lycoris.kohya'; 'lycoris' is not a package",
    ],
    "own-module-missing": [
        "Train Tools: train.train error No module named 'networks.lora'",
        "ModuleNotFoundError: No module named 'library'",
        "ModuleNotFoundError: No module named 'library.lpw_stable_diffusion'",
        "ImportError: cannot import name 'sd3_utils' from 'library' (D:\\sd\\library\\__init__.py)",
        "ImportError: cannot import name 'ControlNetSubset' from 'library.train_util' (/sd/library/train_util.py)",
    ],
    "triton-ops-missing": [
        "ModuleNotFoundError: No module named 'triton.ops'",
    ],
    "hub-newer-than-diffusers": [
        "ImportError: cannot import name 'cached_download' from 'huggingface_hub' "
        "(/venv/lib/python3.10/site-packages/huggingface_hub/__init__.py)",
    ],
    "packages-do-not-fit": [
        "ImportError: cannot import name 'EncoderDecoderCache' from 'transformers' (/venv/lib/transformers/__init__.py)",
    ],
    "library-lacks-a-name": [
        "AttributeError: module 'torch' has no attribute 'float8_e4m3fn'",
    ],
    "numpy-2-refused": [
        "A module that was compiled using NumPy 1.x cannot be run in\nNumPy 2.0.2 as it may crash.",
        "ValueError: numpy.dtype size changed, may indicate binary incompatibility. Expected 96 from C header, got 88 from PyObject",
        "RuntimeError: Numpy is not available",
    ],
    "protobuf-too-new": [
        "TypeError: Descriptors cannot be created directly.",
        "TypeError: Descriptors cannot not be created directly.",
    ],
    "torchvision-of-another-torch": [
        "RuntimeError: operator torchvision::nms does not exist",
    ],
    "optimizer-without-step-count": [
        "AttributeError: 'Prodigy' object has no attribute '_step_count'",
    ],
    "xformers-of-another-torch": [
        "WARNING[XFORMERS]: xFormers can't load C++/CUDA extensions. xFormers was built for:\n    PyTorch 2.1.0+cu118 "
        "with CUDA 1108 (you have 2.1.0+cu121)\n    Python  3.10.13 (you have 3.10.12)\n  Please reinstall xformers",
    ],
    "library-not-loadable": [
        "ImportError: DLL load failed while importing _C: The specified module could not be found.",
        'OSError: [WinError 126] The specified module could not be found. Error loading "C:\\venv\\fbgemm.dll" or one of its dependencies.',
        "ImportError: /venv/flash_attn_2_cuda.so: undefined symbol: _ZN3c104cuda9SetDeviceEi",
        "RuntimeError: Failed to import diffusers.models because of the following error (look up to see its traceback):\n"
        "/opt/a/.triton/cache/QLA/cuda_utils.so: undefined symbol: cuModuleGetFunction",
        "RuntimeError: Failed to import diffusers.loaders because of the following error (look up to see its traceback):\n"
        "Failed to import transformers.models.clip because of the following error (look up to see its traceback):\nDLL load failed",
    ],
    "sentencepiece-missing": [
        "ImportError: T5Tokenizer requires the SentencePiece library but it was not found in your environment.",
        "ValueError: Couldn't instantiate the backend tokenizer from one of:",
    ],
    "script-not-found": [
        "/venv/bin/python: can't open file '/kohya_ss/flux_train_network.py': [Errno 2] No such file or directory",
    ],
    "accelerate-not-found": [
        "bash: accelerate: command not found",
        "'accelerate' is not recognized as an internal or external command,\noperable program or batch file.",
        "'accelerate' n'est pas reconnu en tant que commande interne",
        "'accelerate' は、内部コマンドまたは外部コマンド、",
        "'accelerate' \ufffd\ufffd\ufffd\ufffd\ufffdڲ\ufffd\ufffd\ufffd\ufffdⲿ",
    ],
    "compile-not-possible": [
        "torch._dynamo.exc.BackendCompilerFailed: backend='inductor' raised:\nRuntimeError: Cannot find a working triton installation.",
        "RuntimeError: Windows not yet supported for torch.compile",
        "ValueError: Using torch.compile requires PyTorch 2.0 or higher.",
    ],
    "wandb-without-key": [
        "wandb.errors.errors.UsageError: api_key not configured (no-tty). call wandb.login(key=[your_api_key])",
    ],
    "no-tracker-installed": [
        "UserWarning: `log_with=tensorboard` was passed but no supported trackers are currently installed.",
    ],
    "access-violation": [
        "subprocess.CalledProcessError: Command '['/venv/bin/python', 'train_network.py']' returned non-zero exit status 3221225477.",
    ],
    "stopped-by-windows": [
        "subprocess.CalledProcessError: Command '['python', 'train_network.py']' returned non-zero exit status 3221226505.",
    ],
    "crashed-in-a-library": [
        "subprocess.CalledProcessError: Command '['python', 'train_network.py']' died with <Signals.SIGSEGV: 11>.",
        "Segmentation fault (core dumped)",
    ],
    "interrupted": [
        "KeyboardInterrupt",
        "subprocess.CalledProcessError: Command '['python', 'train_network.py']' died with <Signals.SIGTERM: 15>.",
    ],
    "library-announces-a-change": [
        "FutureWarning: `clean_up_tokenization_spaces` was not set. It will be set to `True` by default.",
        "UserWarning: torch.utils._pytree._register_pytree_node is deprecated. Please use the other.",
    ],
}

# Rows that also fire on another row's sample, and should.
ALSO = {"model-deleted": {"model-not-found"}}


def columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def as_rich_shows(text: str, width: int = 80, level: str = "WARNING", colours: bool = False) -> str:
    """A log line as rich's handler breaks it: time and level at the left, the file at the right of the first line."""
    column, room = "train_util.py:5083", width - 29 - 19
    lines, line = [], ""
    for word in re.findall(r"\S+\s*", text):
        if line and columns(line + word.rstrip()) > room:
            lines, line = [*lines, line], ""
        for character in word:
            if columns(line + character) > room:
                lines, line = [*lines, line], ""
            line += character
    shown = []
    for number, part in enumerate([*lines, line]):
        left = f"2026-11-23 22:02:48 {level:8} " if number == 0 else " " * 29
        part = part.rstrip() + " " * (room - columns(part.rstrip()))
        shown.append(f"{left}{part} {column if number == 0 else ' ' * len(column)}")
    log = "\n".join(shown)
    if colours:
        link = f"\x1b]8;id=1;file:///train_util.py\x1b\\\x1b[2m{column}\x1b[0m\x1b]8;;\x1b\\"
        log = log.replace(level, f"\x1b[33m{level}\x1b[0m").replace(column, "COLUMN").replace("_", "_\x1b[1;36m").replace("COLUMN", link)
    return log


def samples(name: str) -> list[str]:
    texts = list(SAMPLES.get(name, ()))
    if name in BILINGUAL:
        english, japanese = BILINGUAL[name]
        both = f"{english} / {japanese}"
        texts += [english, japanese, both, as_rich_shows(both), as_rich_shows(japanese, 70), as_rich_shows(both, 61, colours=True)]
    return texts + (made_by_real_code(name) if name in REAL else [])


def raised(call, *arguments, **keywords) -> str:
    with pytest.raises(BaseException) as caught:  # argparse exits
        call(*arguments, **keywords)
    return "".join(traceback.format_exception(caught.value))


def warned(call, *arguments, **keywords) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(*arguments, **keywords)
    return "".join(warnings.formatwarning(w.message, w.category, w.filename, w.lineno) for w in caught)


def checkpoint(*, frozen_input: bool = False, **keywords) -> None:
    import torch
    from torch.utils.checkpoint import checkpoint

    loss = checkpoint(torch.nn.Linear(2, 2), torch.zeros(1, 2, requires_grad=not frozen_input), **keywords).sum()
    if loss.requires_grad:
        loss.backward()


def frozen_checkpoint() -> None:
    import torch
    from torch.utils.checkpoint import checkpoint

    checkpoint(lambda x: x.detach(), torch.zeros(1, requires_grad=True), use_reentrant=True).sum().backward()


def checkpoint_and_grad() -> None:
    import torch
    from torch.utils.checkpoint import checkpoint

    x = torch.zeros(1, requires_grad=True)
    torch.autograd.grad(checkpoint(torch.sin, x, use_reentrant=True).sum(), x)


def adafactor(**keywords) -> None:
    import torch
    from transformers.optimization import Adafactor

    Adafactor([torch.nn.Parameter(torch.zeros(2))], **keywords)


def scheduler(name: str, **keywords) -> None:
    import torch
    from transformers.optimization import get_scheduler

    get_scheduler(name, torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=1.0), **keywords)


def step_in_the_wrong_order() -> None:
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=1.0)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0).step()


def unscale(*, twice: bool = False, dtype: str = "float32", gradient: bool = True) -> None:
    import torch

    parameter = torch.nn.Parameter(torch.zeros(2, dtype=getattr(torch, dtype)))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.zeros(1))
    if gradient:
        parameter.grad = torch.zeros_like(parameter)
    scaler.unscale_(optimizer)
    if twice:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)


def scheduler_class(name: str):
    import torch

    return getattr(torch.optim.lr_scheduler, name)


def arguments_of(*settings: str) -> dict:
    """The loop of sd-scripts that reads optimizer_args."""
    keywords = {}
    for arg in settings:
        key, value = arg.split("=")
        value = ast.literal_eval(value)
        keywords[key] = value
    return keywords


def typed(line: str) -> str:
    """What a script answers to a wrong command line."""

    def int_or_float(value: str) -> float:
        if value.endswith("%"):
            try:
                return float(value[:-1]) / 100.0
            except ValueError:
                raise argparse.ArgumentTypeError(f"Value '{value}' is not a valid percentage") from None
        try:
            return int(value) if float(value) >= 1 else float(value)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{value}' is not an int or float") from None

    said = []
    parser = argparse.ArgumentParser(prog="train_network.py", allow_abbrev=False)
    parser.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"])
    parser.add_argument("--learning_rate", type=float)
    parser.add_argument("--lr_warmup_steps", type=int_or_float)
    parser.add_argument("--network_module", required=True)
    parser._print_message = lambda message, file=None: said.append(message)
    with pytest.raises(SystemExit):
        parser.parse_args(line.split(" "))
    return "".join(said)


REAL = {
    "checkpoint-use-reentrant-missing": lambda: [warned(checkpoint)],
    "checkpoint-no-input-needs-grad": lambda: [warned(checkpoint, frozen_input=True, use_reentrant=True)],
    "checkpoint-refuses-keywords": lambda: [raised(checkpoint, use_reentrant=True, scale=2)],
    "checkpoint-refuses-grad": lambda: [raised(checkpoint_and_grad)],
    "checkpoint-output-without-grad": lambda: [raised(frozen_checkpoint)],
    "adafactor-two-learning-rates": lambda: [raised(adafactor, lr=1e-4)],
    "adafactor-warmup-init-alone": lambda: [raised(adafactor, lr=1e-4, relative_step=False, warmup_init=True)],
    "optimizer-refuses-argument": lambda: [raised(adafactor, betas=(0.9, 0.99))],
    "scheduler-unknown": lambda: [raised(scheduler, "cosine_with_warmup")],
    "scheduler-needs-steps": lambda: [raised(scheduler, "cosine")],
    "scheduler-needs-min-lr": lambda: [raised(scheduler, "cosine_with_min_lr", num_warmup_steps=1, num_training_steps=10)],
    "scheduler-class-unknown": lambda: [raised(scheduler_class, "cosine")],
    "scheduler-before-optimizer": lambda: [warned(step_in_the_wrong_order)],
    "unscaled-twice": lambda: [raised(unscale, twice=True)],
    "scaler-saw-no-gradient": lambda: [raised(unscale, gradient=False)],
    "trained-weights-in-fp16": lambda: [raised(unscale, dtype="float16")],
    "argument-not-a-literal": lambda: [raised(arguments_of, "relative_step=false")],
    "argument-not-python": lambda: [raised(arguments_of, "betas=0.9 0.99"), raised(arguments_of, "relative_step=")],
    "argument-without-equals": lambda: [raised(arguments_of, "relative_step")],
    "argument-with-two-equals": lambda: [raised(arguments_of, "relative_step=False scale_parameter=False")],
    "option-unknown": lambda: [typed("--network_module networks.lora --max_grad_nrom=0")],
    "option-invalid-choice": lambda: [typed("--mixed_precision float16")],
    "option-without-value": lambda: [typed("--learning_rate")],
    "option-wrong-type": lambda: [typed("--learning_rate 1e-4,")],
    "option-neither-steps-nor-ratio": lambda: [typed("--lr_warmup_steps 100.0"), typed("--lr_warmup_steps ten%")],
    "option-required": lambda: [typed("--learning_rate 1e-4")],
}


def made_by_real_code(name: str) -> list[str]:
    return REAL[name]()


def names(text: str) -> list[str]:
    return [finding.rule for finding in read(text)]


def only(text: str) -> Finding:
    (finding,) = read(text)
    return finding


@pytest.mark.parametrize("name", BY_NAME)
def test_a_message_is_found_in_its_samples_and_no_other_is(name):
    assert samples(name), "a row needs a real message to be tested with"
    for text in samples(name):
        found = read(text)
        assert {finding.rule for finding in found} - ALSO.get(name, set()) == {name}, text
        finding = next(finding for finding in found if finding.rule == name)
        assert "times)" not in finding.what, f"both halves, or the line of code above it, were counted: {text}"
        assert looks_like_log(text), text


def test_every_sample_belongs_to_a_row():
    assert {*SAMPLES, *BILINGUAL, *REAL, *ALSO} <= set(BY_NAME)
    assert len(BY_NAME) == len(MESSAGES), "a name is used twice"


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.name)
def test_a_row_is_complete_and_cheap_to_search(message):
    assert message.effect in EFFECTS and message.source and message.why
    assert message.lesson in LESSONS
    assert message.fix or message.effect == "note", "what is wrong needs a way out"
    groups = set()
    for part in message.pattern.split(" | "):
        groups |= set(re.compile(part, re.VERBOSE).groupindex)
        begins = re.match(r"(?:[^\\.^$*+?{}\[\]|()]|\\[^\w])*", "".join(part.split())).group()
        assert len(begins) >= 5, f"an alternative must begin with fixed text: {part}"
        assert not re.search(r"(?<!\\)[*+]|,\}", part.replace("[\\w.+-]", "")), f"a gap needs a bound: {part}"
    used = {field for text in (message.what, message.why, message.fix) for _, field, _, _ in string.Formatter().parse(text) if field}
    assert used <= groups


def test_explanations_are_sentences():
    for message in MESSAGES:
        for text in (message.what, message.why):
            assert text.endswith("."), message.name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("adafactor-refuses-warmup", "adafactor:0.0001"),
        ("adafactor-in-use", "'scale_parameter': False, 'relative_step': False, 'warmup_init': False"),
        ("nan-in-latents", "/data/10_my cat/01.png"),
        ("not-a-folder", "/data/10_my cat."),
        ("gpu-out-of-memory", "asked for 20.00 MiB more; of 7.79 GiB, 18.44 MiB were free"),
        ("scheduler-unknown", "cosine_with_warmup"),
        ("scheduler-class-unknown", "was cosine."),
        ("optimizer-refuses-argument", "does not know betas"),
        ("checkpoint-refuses-keywords", "it was given scale."),
        ("option-unknown", "it is --max_grad_nrom=0."),
        ("option-invalid-choice", "does not accept this value; it was given float16; it may be 'no', 'fp16', 'bf16'."),
        ("option-wrong-type", "--learning_rate wants another kind of value; 1e-4, is not of the kind float."),
        ("option-neither-steps-nor-ratio", "it was given 100.0."),
        ("option-required", "it lacks --network_module."),
        ("model-deleted", "runwayml/stable-diffusion-v1-5 has been deleted"),
        ("captions-missing", "there are 12 of them"),
        ("accumulation-with-two-models", "over 4 batches"),
        ("folder-without-repeats", "its name is img."),
        ("full-precision-mismatch", "full_fp16 was used"),
    ],
)
def test_values_are_quoted_as_they_were_written(name, expected):
    finding = next(finding for finding in read(samples(name)[0]) if finding.rule == name)
    assert expected in f"{finding.what} {finding.why}"


def test_out_of_memory_in_older_words_and_without_amounts():
    _, older, oldest, bare = (read(text)[0].what for text in SAMPLES["gpu-out-of-memory"])
    assert "1.70 GiB more" in older and "of 6.00 GiB, 0 bytes were free" in older
    assert "2.87 GiB more" in oldest and "of 14.76 GiB, 19.75 MiB were free" in oldest
    assert bare == "The GPU's memory is full."


def test_a_clause_without_its_value_is_left_out():
    assert only("ImportError: No bitsandbytes").what == "bitsandbytes is not installed."
    assert only("is not a valid SchedulerType").what == "There is no lr_scheduler of this name."


def test_values_are_short_and_harmless_to_print():
    shown = only("NaN detected in latents: \x1b[31m/data\x00/\u202egnp." + "long" * 100 + "\nnext line").what
    value = shown.rpartition("was ")[2]
    assert len(value) <= 82 and value.endswith("….") and all(character.isprintable() for character in shown)


def test_values_with_braces_stay_as_they_are():
    assert "{picture} {0.__class__}" in only("NaN detected in latents: {picture} {0.__class__}").what


def test_worst_first_then_in_order_of_appearance():
    log = "\n".join(
        [
            "no regularization images / 正則化画像が見つかりませんでした",
            as_rich_shows("constant_with_warmup will be good / スケジューラはconstant_with_warmupが良いかもしれません"),
            as_rich_shows("learning rate is used as initial_lr / 指定したlearning rateはinitial_lrとして使用されます"),
            as_rich_shows("because max_grad_norm is set, clip_grad_norm is enabled. consider set to 0"),
            SAMPLES["loss-is-nan"][0],
            SAMPLES["gpu-out-of-memory"][0],
            SAMPLES["launcher-reports-failure"][0],
        ]
    )
    assert names(log) == [
        "gpu-out-of-memory",
        "adafactor-learning-rate-ignored",
        "adafactor-wants-constant-with-warmup",
        "adafactor-clipping-on",
        "loss-is-nan",
        "no-regularization-pictures",
        "launcher-reports-failure",
    ]


def test_the_log_of_the_well_known_recipe():
    """Adafactor with a warmup and nothing said about relative_step: the values of the log explain the error."""
    log = "\n".join(
        [
            as_rich_shows("use Adafactor optimizer | {'relative_step': True}", level="INFO"),
            as_rich_shows("relative_step is true / relative_stepがtrueです", level="INFO"),
            as_rich_shows("learning rate is used as initial_lr / 指定したlearning rateはinitial_lrとして使用されます"),
            as_rich_shows("unet_lr and text_encoder_lr are ignored / unet_lrとtext_encoder_lrは無視されます"),
            as_rich_shows("use adafactor_scheduler / スケジューラにadafactor_schedulerを使用します", level="INFO"),
            SAMPLES["adafactor-refuses-warmup"][0],
        ]
    )
    first, *rest = read(log)
    assert first.rule == "adafactor-refuses-warmup" and first.effect == "raises" and "relative_step=False" in first.fix
    assert [finding.effect for finding in rest] == ["overrides"] * 3 + ["note"] * 2


def test_how_often_is_said():
    step = SAMPLES["loss-is-nan"][0]
    assert only(step).what.endswith("(not a number).")
    assert only("\r".join([step] * 250)).what.endswith("(250 times)")
    english, japanese = BILINGUAL["adafactor-clipping-on"]
    assert only("\n".join([as_rich_shows(f"{english} / {japanese}")] * 2)).what.endswith("(2 times)")


def test_the_line_of_code_in_a_traceback_is_not_a_message():
    code = '    raise ValueError(f"{name} does not require `num_warmup_steps`. Set None or 0.")\n'
    assert names(code) == []
    assert "{" not in read(code + "ValueError: adafactor:1e-4 does not require `num_warmup_steps`. Set None or 0.")[0].why


def test_every_width_of_the_terminal():
    text = " / ".join(BILINGUAL["adafactor-clipping-on"])
    for width in range(52, 200):
        assert names(as_rich_shows(text, width)) == ["adafactor-clipping-on"], width


def test_a_real_log_of_rich_at_60_columns():
    """rich breaks the name clip_grad_norm in two where it stands in Japanese."""
    log = """\
2026-11-23 22:02:48 WARNING  because max_grad_norm   rt.py:8
                             is set, clip_grad_norm         
                             is enabled. consider           
                             set to 0 /                     
                             max_grad_normが設定され        
                             ているためclip_grad_nor        
                             mが有効になります。0に         
                             設定して無効にしたほう         
                             がいいかもしれません           
                    WARNING  constant_with_warmup   rt.py:10
                             will be good /                 
                             スケジューラはconstant         
                             _with_warmupが良いかも         
                             しれません                     
"""
    assert names(log) == ["adafactor-clipping-on", "adafactor-wants-constant-with-warmup"]
    japanese = "\n".join(line for line in log.splitlines() if re.search(r"[\u3040-\u9fff]", line))
    assert names(japanese) == names(log)


def test_a_look_into_a_broken_file_is_no_text_in_another_encoding():
    """transformers looks whether a file that torch cannot read is a pointer of Git LFS, and so reads a model as text."""
    log = frames("return torch.load(checkpoint_file)", error="RuntimeError: PytorchStreamReader failed reading zip archive")
    log += "\nDuring handling of the above exception, another exception occurred:\n\n"
    log += frames('if f.read(7) == "version":', error="UnicodeDecodeError: 'gbk' codec can't decode byte 0x80 in position 64")
    assert names(log) == ["checkpoint-file-broken"]


def test_a_warning_about_an_optional_library_stops_nothing():
    log = "UserWarning: Failed to load image Python extension: '/venv/torchvision/image.so: undefined symbol: _ZN3c1017' If you don't plan"
    assert names(log) == []
    assert names("UserWarning: Failed to load image Python extension: '[WinError 127] The procedure could not be found'If you") == []


def test_a_function_that_is_no_optimizer_refuses_an_argument():
    for function in ("load_model", "T5EncoderModel.__init__", "DreamBoothSubset.__init__"):
        assert names(f"TypeError: {function}() got an unexpected keyword argument 'device'") == []
    for function in ("__init__", "AdamW.__init__", "get_cosine_schedule_with_warmup"):
        assert names(f"TypeError: {function}() got an unexpected keyword argument 'x'") == ["optimizer-refuses-argument"]


def test_colours_whose_escape_character_was_lost():
    assert names("[33mWARNING [0m because max_grad_norm is set, [1;36mclip_grad_norm is enabled[0m.") == ["adafactor-clipping-on"]


@pytest.mark.parametrize("framed", [False, True])
def test_several_processes_and_framed_tracebacks(framed):
    text = "[rank0]: ValueError: adafactor:0.0001 does not require\n[rank0]: `num_warmup_steps`. Set None or 0."
    if framed:
        text = text.replace("[rank0]: ", "│ ").replace("\n", "              │\n") + " │"
    assert names(text) == ["adafactor-refuses-warmup"]


@pytest.mark.parametrize("text", ["", " \n\r\n\t", "hello", "\x00\x1b[", "\x1b]8;;", "│" * 50, "{", "{}", "\ud800", "No", "%|", "[", "\\"])
def test_nothing_is_found_in_nothing(text):
    assert read(text) == ()
    assert not looks_like_log(text)


def test_any_text_is_read():
    generator = random.Random(0)
    pieces = [text for name in BY_NAME if name not in REAL for text in samples(name)] + [
        "\x1b[",
        "\x1b]",
        "{",
        "}",
        "\r",
        "\u2028",
        "\ud800",
    ]
    for _ in range(300):
        text = "".join(
            piece[generator.randrange(len(piece)) :][: generator.randrange(60)]
            for piece in generator.choices(pieces, k=generator.randrange(40))
        )
        assert all(isinstance(finding, Finding) and finding.what for finding in read(text))
        assert looks_like_log(text) in (True, False)


STARTS = [part.split("(?P")[0].replace("\\", "").replace(" ", "")[:60] for message in MESSAGES for part in message.pattern.split(" | ")]

LONG = {
    "a log that holds everything": "\n".join(text for name in BY_NAME if name not in REAL for text in samples(name)),
    "beginnings of messages": "".join(STARTS),
    "beginnings, one a line": "\n".join(STARTS),
    "one beginning": "error: argument ",
    "code that needs an end": 'key, value = arg.split("=")',
    "words": "adafactor_" * 10,
    "spaces": " ",
    "short lines": "a\n",
    "file names": " a.py:1",
    "indented files": "    a.py:1 x\n",
    "escapes": "\x1b[1;1;1;",
    "links": "\x1b]8;",
    "numbers": "1 12:34 ",
    "carriage returns": "steps:   1%| | 16/1600 [00:12<20:13,  1.31it/s, avr_loss=nan]\r",
    "equals": "a=",
}


@pytest.mark.parametrize("piece", LONG.values(), ids=LONG)
def test_three_megabytes_take_seconds(piece):
    text = (piece * (3_000_000 // len(piece) + 1))[:3_000_000]
    began = time.process_time()
    read(text)
    looks_like_log(text)
    assert time.process_time() - began < 5


COMMAND = r"""accelerate launch --num_cpu_threads_per_process 1 train_network.py \
  --pretrained_model_name_or_path="runwayml/stable-diffusion-v1-5" \
  --optimizer_type="Adafactor" --optimizer_args "relative_step=False" "scale_parameter=False" \
      "warmup_init=False" \
  --max_grad_norm=0 --lr_scheduler=constant_with_warmup \
  --lr_warmup_steps=100  # about 10%|
"""

SETTINGS = {
    "one line": " ".join(COMMAND.replace("\\\n", " ").split()),
    "backslashes": COMMAND,
    "carets": COMMAND.replace("\\\n", "^\n").replace("accelerate launch", r".\venv\Scripts\accelerate.exe launch"),
    "a notebook cell": "!" + COMMAND,
    "with variables": "CUDA_VISIBLE_DEVICES=0 PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True " + COMMAND,
    "after another command": "cd sd-scripts && source venv/bin/activate\n" + COMMAND,
    "python": 'python train_network.py --config_file="D:\\画像 / cats\\config.toml" --help',
    "options only": "--optimizer_type=Adafactor --max_grad_norm=0",
    "one option": "--gradient_checkpointing",
    "option arguments only": '"relative_step=False" "scale_parameter=False"',
    "TOML": """\
# It used to end with RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB
pretrained_model_name_or_path = "/models/a / 猫.safetensors"
optimizer_type = "Adafactor"  # relative_step is true
optimizer_args = [
    "relative_step=False",
    "scale_parameter=False",
]
max_grad_norm = 0
[saving]
save_every_n_epochs = 1
[[datasets]]
resolution = 512
""",
    "broken TOML": "optimizer_type = Adafactor\nmax_grad_norm 0\noptimizer_args = relative_step=False",
    "JSON": json.dumps({"optimizer": "Adafactor", "max_grad_norm": 0, "log_with": ["tensorboard"], "note": "a / 猫", "loss": "loss=nan"}),
    "indented JSON": json.dumps({"optimizer": "Adafactor", "args": ["relative_step=False"], "max_grad_norm": 0}, indent=2),
}


@pytest.mark.parametrize("text", SETTINGS.values(), ids=SETTINGS)
def test_settings_are_no_log(text):
    assert not looks_like_log(text)


def test_the_settings_above_are_real():
    assert tomllib.loads(SETTINGS["TOML"])["max_grad_norm"] == 0
    assert json.loads(SETTINGS["indented JSON"])


@pytest.mark.parametrize(
    "text",
    [
        "steps:   0%|          | 0/1600 [00:00<?, ?it/s]",
        "steps:   1%|▏ | 16/1600 [00:12<20:13,  1.31it/s, avr_loss=0.0931]",
        "epoch 1/12",
        "  num train images * repeats / 学習画像の数×繰り返し回数: 1050",
        "2026-11-23 22:02:48 INFO     prepare accelerator                 train_network.py:592",
        "                    INFO     loading vae",
        "[11/23/26 22:02:48] INFO     loading vae",
        "WARNING: something happened",
        'Traceback (most recent call last):\n  File "a.py", line 1, in <module>\nZeroDivisionError: division by zero',
        "KeyError: 'lr'",
        "KeyboardInterrupt",
        "[rank1]: Traceback (most recent call last):",
        "│   101 │   │   │   if (is_last and len(bucket) > 0) │\n│ ❱ 102 │   │   │   │   train_util.cache_batch_latents(vae, │",
        "/venv/lib/python3.11/site-packages/diffusers/x.py:12: FutureWarning: old",
        "usage: train_network.py [-h]\n                        [--console_log_level {DEBUG}]\n"
        "train_network.py: error: unrecognized arguments: --foo",
        COMMAND + "ValueError: adafactor:0.0001 does not require `num_warmup_steps`. Set None or 0.",
    ],
)
def test_logs_are_logs(text):
    assert looks_like_log(text)


@pytest.mark.parametrize("first", ["[Dataset 0]", "    value = getattr(module, name)"])
def test_a_logs_file_that_begins_like_toml_is_a_log(tmp_path, first):
    path = tmp_path / "paste.txt"
    path.write_text(f'{first}\nTraceback (most recent call last):\n  File "train.py", line 1, in <module>\nOSError: gone away\n')
    diagnosis = diagnose(path)
    assert diagnosis.is_log
    assert "OSError: gone away" in str(diagnosis)
