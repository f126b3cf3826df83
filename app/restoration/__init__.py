"""The domain of `/denoise`, `/encode` and `/reconstruct`: images to images, and to latent vectors."""
