"""Shared by all training scripts: the training loop, the run's folder, export, seeds, initialisation, errors."""
