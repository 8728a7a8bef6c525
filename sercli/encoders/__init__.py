"""The ViT, reading everybody's and writing timm's."""
