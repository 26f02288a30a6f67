"""Check and time training on a GPU that is lent for minutes, where torch and numpy are all there is (docs/results/gpu_day.md)."""
