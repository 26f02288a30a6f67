"""The method of the paper: select, align, weigh and fuse atlases; recentring, agreement, warning flags."""
