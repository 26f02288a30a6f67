"""The review page, ``oasis-monai review``: look at results, accept, reject or correct them, and teach the model.

:mod:`.worklist` knows the scans, :mod:`.grids` brings their voxels to the page and back, :mod:`.drawings` keeps what was drawn,
:mod:`.jobs` segments and teaches in the background, :mod:`.app` answers the page, :mod:`.access` keeps others out.
"""
