"""The domain of `/generate`: samples from a seed, decoded latents, interpolation. A latent is a generator's input."""
