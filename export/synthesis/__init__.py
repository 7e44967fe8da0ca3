"""Export of generators: graphs, precision, and the gate on drawn images."""
