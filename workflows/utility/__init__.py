"""Does a drawn set help? The detector that ships, trained with and without it, compared on real images."""
