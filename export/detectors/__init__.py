"""Export of detectors: graphs, heads, and the independent reference of the parity gate."""
