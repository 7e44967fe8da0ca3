"""Pages of the documentation that are made when the site is built: commands, settings, Python API, linked files."""
