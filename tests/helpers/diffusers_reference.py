"""diffusers' own pipelines on given networks, from given noise: what graphs and loop are compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flawscope.arrays import BoolArray, Float32Array, UInt8Array
from flawscope.diffusion.reconstruction import signed


def latent_ddim() -> Any:
    """Return the DDIMScheduler that latent diffusion models were published with."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def fill_box(
    autoencoder: nn.Module,
    unet: nn.Module,
    image: UInt8Array,
    mask: BoolArray,
    noise: Float32Array,
    texts: tuple[Tensor, Tensor],
) -> tuple[list[Float32Array], UInt8Array]:
    """Return the latents after each of 20 DDIM steps with guidance 3.5, and the image uint8 [1, H, W, 3].

    Args:
        autoencoder: An AutoencoderKL.
        unet: An inpainting UNet2DConditionModel.
        image: uint8 [1, H, W, 3].
        mask: Where it is drawn, bool [H, W].
        noise: What the latents begin as, float32 [1, C, h, w].
        texts: What the text encoder gives for the wanted and for the empty text.
    """
    from diffusers import StableDiffusionInpaintPipeline

    pipeline: Any = StableDiffusionInpaintPipeline(
        vae=autoencoder,  # type: ignore[arg-type]
        text_encoder=None,
        tokenizer=None,
        unet=unet,  # type: ignore[arg-type]
        scheduler=latent_ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    latents: list[Float32Array] = []

    def note(_pipeline: object, _number: int, _timestep: object, values: dict[str, Any]) -> dict[str, Any]:
        latents.append(values["latents"].numpy().copy())
        return values

    pixels = pipeline(
        image=torch.from_numpy(signed(image)),
        mask_image=torch.from_numpy(mask.astype(np.float32))[None, None],
        height=mask.shape[0],
        width=mask.shape[1],
        num_inference_steps=20,
        guidance_scale=3.5,
        latents=torch.from_numpy(noise),
        prompt_embeds=texts[0],
        negative_prompt_embeds=texts[1],
        output_type="np",
        callback_on_step_end=note,
    ).images
    return latents, np.rint(255 * pixels).astype(np.uint8)
