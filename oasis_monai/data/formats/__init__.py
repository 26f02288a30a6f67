"""File formats of scans: headers are checked before any library opens a file.

Public modules: :mod:`.dispatch` (the table of formats), :mod:`.load` (read voxels), :mod:`.header` (rules for all formats),
:mod:`.voxel_file` (data files), :mod:`.by_nibabel`; a format each: :mod:`.dicom`, :mod:`.metaimage` and :mod:`.metaimage_data`,
:mod:`.nifti`, :mod:`.analyze`, :mod:`.nrrd` with :mod:`.segments`, :mod:`.mgh`, :mod:`.picture`.
"""
