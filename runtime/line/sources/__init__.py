"""Where the images of a line come from: one folder or file for each kind, and a row in `table`."""
