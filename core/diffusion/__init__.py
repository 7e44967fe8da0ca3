"""The mathematics of denoising diffusion on NumPy arrays: schedules, reconstruction, latent inpainting, prompts."""
