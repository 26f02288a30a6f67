"""The ways in which a data set may lie on disk, one module each, and what they have in common.

:mod:`.promise12`, :mod:`.decathlon` (MSD and nnU-Net), :mod:`.case_folders`, :mod:`.paired` (two folders, or one, with names that
match), :mod:`.templates`, :mod:`.table` (CSV), :mod:`.datalist` (JSON), :mod:`.dicom` and :mod:`.folder` (scans without labels);
:mod:`.files` (what there is in folders), :mod:`.record` (what they give back). :mod:`oasis_monai.data.cases` chooses among them.
"""
