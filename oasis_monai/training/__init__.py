"""Training of the networks.

Public modules: :mod:`.trainer` (training loop, budget, checkpoints), :mod:`.distributed` (several processes under torchrun),
:mod:`.registration`, :mod:`.segmentation` and :mod:`.slices` (one kind of network each).
"""
