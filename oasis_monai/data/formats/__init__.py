"""The file formats scans come in: one module each, and one that picks the right one."""
