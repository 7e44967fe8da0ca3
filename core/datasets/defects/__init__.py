"""Sets that a synthesis starts from: support, box, mask and description sets, with one strict reader each."""
