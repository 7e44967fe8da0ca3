"""Whether parts, light and focus are still those that a view knows: warnings, never a change of a verdict."""
