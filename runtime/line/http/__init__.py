"""The line's own HTTP interface: state, parts and metrics for whoever asks, images and triggers from machines."""
