"""What each command of ``oasis-monai`` does.

Public modules: :mod:`.api` (the commands as Python functions), :mod:`.crossval`, :mod:`.study`, :mod:`.train`, :mod:`.segment`,
:mod:`.library` (edit a model's atlases), :mod:`.check`; their parts :mod:`.prepare` (data set), :mod:`.fold_models` (networks of
a fold), :mod:`.corrupted_copies`, :mod:`.case_pictures`, :mod:`.study_report`, :mod:`.field_of_view`, :mod:`.model` and
:mod:`.model_folder` (trained models), :mod:`.scan_result`, :mod:`.segment_table`, :mod:`.run_record`; the package
:mod:`.bundle` (MONAI bundles).
"""
