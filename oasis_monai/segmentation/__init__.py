"""The method of the paper: select, align, weigh and fuse atlases.

Public modules: :mod:`.pipeline` (from a scan to its label), :mod:`.segmenter` (the method for one target), :mod:`.methods` (the
table of methods), :mod:`.alignment`, :mod:`.loa` (label overlapping accuracy), :mod:`.evidence` and :mod:`.fusion` (weights and
label fusion), :mod:`.estimate` (the joint model's first estimate), :mod:`.recentre` (move the working grid), :mod:`.agreement`,
:mod:`.flags` (warning flags), :mod:`.build` (a segmenter from trained networks).
"""
