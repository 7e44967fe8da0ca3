"""Learning from labelled defects: sources, batches, the segmenter; and measures of variety."""
