"""Diagnosis of an installation: devices, versions, drivers, and the execution provider of every node."""
