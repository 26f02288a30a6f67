"""Torch modules and their mathematics.

Public modules: :mod:`.registration` (the spatial transform model), :mod:`.segmentation` (U-Net, DynU-Net, ConvNet),
:mod:`.slice_unet` (the slice network of a joint model), :mod:`.encoders` (ImageNet networks), :mod:`.warp` (displacement fields),
:mod:`.losses`, :mod:`.layers`, :mod:`.depthwise` and :mod:`.fast_training` (faster or safer layers).
"""
