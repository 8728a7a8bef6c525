"""Mask R-CNN on the frozen encoder."""
