"""Metrics of classifiers, embedders, generators and denoisers, and the monitor that stops a collapsed GAN."""
