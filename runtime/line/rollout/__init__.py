"""Releases of bundles for many lines: published in an OCI layout or registry, and pulled by each line's own swap."""
