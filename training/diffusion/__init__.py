"""Networks of the diffusion detectors: denoisers, autoencoder, semantic guidance, comparison."""
