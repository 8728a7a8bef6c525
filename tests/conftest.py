"""Shared by all tests: one thread, so that several workers share a small machine in peace."""

import torch

torch.set_num_threads(1)
