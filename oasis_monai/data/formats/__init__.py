"""File formats of scans: headers are checked before any library opens a file.

Public modules: :mod:`.dispatch` (the table of formats), :mod:`.load` (read voxels), :mod:`.header` (rules for all formats),
:mod:`.voxel_file` (data files), :mod:`.by_nibabel`; a format each: :mod:`.dicom`, :mod:`.metaimage` and :mod:`.metaimage_data`,
:mod:`.nifti`, :mod:`.analyze`, :mod:`.nrrd` with :mod:`.segments`, :mod:`.mgh`, :mod:`.picture`.

DICOM: :mod:`.dicom_file` (one
file), :mod:`.dicom_slices` (an even stack of them), :mod:`.dicom_folders` (where they lie), :mod:`.dicom_frames` (enhanced),
:mod:`.dicom_pixels`; labels: :mod:`.dicom_labels`, :mod:`.dicom_seg`, :mod:`.rtstruct` with :mod:`.contours`,
:mod:`.dicom_structures`.
"""
