"""General tools without anything medical: errors, files, memory, devices, processes.

Public modules: :mod:`.config` (groups of settings), :mod:`.device` (CPU, GPU, bfloat16), :mod:`.errors`, :mod:`.files` (atomic
writing, locks, digests), :mod:`.interpolation`, :mod:`.interrupts` (Ctrl-C), :mod:`.memory` (a full memory), :mod:`.presets`
(``conf/`` without Hydra), :mod:`.processes`, :mod:`.startup`, :mod:`.tensor_files`.
"""
