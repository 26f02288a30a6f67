"""File formats of scans: headers are checked before any library opens a file.

Public modules: :mod:`.dispatch` (choose the format), :mod:`.header` (rules for all formats), :mod:`.dicom`, :mod:`.metaimage`
and :mod:`.metaimage_data`, :mod:`.nifti`.
"""
