"""What each command of ``oasis-monai`` does.

Public modules: :mod:`.api` (the commands as Python functions), :mod:`.crossval`, :mod:`.study`, :mod:`.train`, :mod:`.segment`,
:mod:`.library` (edit a model's atlases), :mod:`.check`, :mod:`.plan` (what suits a data set); their parts :mod:`.prepare` (data
set), :mod:`.fingerprint` and :mod:`.plan_rules` (of the plan), :mod:`.fold_models` (networks of a fold),
:mod:`.corrupted_copies`, :mod:`.case_pictures`, :mod:`.study_plan`, :mod:`.study_report`, :mod:`.model` and :mod:`.model_folder`
(trained models), :mod:`.scan_result`, :mod:`.segment_table`, :mod:`.run_record`; the package :mod:`.bundle` (MONAI bundles).
"""
