"""Nothing medical: errors, files and locks, tensor files, memory, devices, interpolation, processes."""
