"""ImageNet-C, -P, -R, -A, -Sketch and -V2 as they are published."""
