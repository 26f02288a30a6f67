"""Programs of others that take what this one writes, tried for real."""
