"""Images and geometry on them: decoding, preprocessing, tiles, crops, boxes, edges, and map upsampling."""
