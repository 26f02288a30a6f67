"""Torch modules and their mathematics: registration, segmentation, slice U-Net, ImageNet encoders, warp, losses."""
