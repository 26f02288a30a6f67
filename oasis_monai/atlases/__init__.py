"""The labelled scans a new scan is compared with: library, image features, atlas selection, slices as atlases."""
