"""The training loop and what belongs to it: batches, augmentation, checkpoints, optimizers, workspace."""
