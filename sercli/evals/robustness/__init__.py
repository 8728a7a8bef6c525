"""ImageNet-C, -P, -R, -A, -Sketch and -V2 with a classifier."""
