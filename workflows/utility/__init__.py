"""Does a synthetic set help? A segmenter trained with and without it, compared on real images."""
