"""What is here and what is missing: devices, versions, drivers, and which provider takes which node."""
