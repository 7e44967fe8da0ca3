"""What an image must be like before it is scored: light, focus, and that it is a new one."""
