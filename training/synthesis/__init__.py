"""Generators of defects: base model, learned embeddings, inpainting networks."""
