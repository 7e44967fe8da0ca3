"""A small segmenter and measures of variety, for the downstream benchmark."""
