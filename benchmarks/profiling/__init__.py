"""Where the time of one segmentation and of one training step goes."""
