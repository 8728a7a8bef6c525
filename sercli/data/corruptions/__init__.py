"""Corruptions of ImageNet-C and perturbations of ImageNet-P, deterministic for each image."""
