"""Atlases: the labelled scans that a new scan is compared with.

Public modules: :mod:`.library` (the atlas library), :mod:`.features` (image features), :mod:`.selection` (nearest atlases),
:mod:`.slices` (slices as atlases, shape-based interpolation).
"""
