"""Losses as pure functions of tensors: metric learning, autoencoders, adversarial networks.

Mining chooses the pairs or triplets of a batch that a metric loss is computed on.
"""
