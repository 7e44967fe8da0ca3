"""Work in shards: a plan, workers that each open the bundle once, and a merge with the bytes of a single process."""
