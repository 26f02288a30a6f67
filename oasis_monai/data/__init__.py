"""From files to labelled volumes.

Public modules: :mod:`.types` (Case, Volume, Segmentation, ...), :mod:`.cases` (find the cases of a data set), :mod:`.io` (read
and write scans), :mod:`.labels` (their values and names), :mod:`.folds` (cross-validation folds), :mod:`.dataset_yaml` (check a
data set's YAML), :mod:`.download` and :mod:`.archives` (public data sets); the packages :mod:`.formats` (of files) and
:mod:`.phantom` (synthetic scans).
"""
