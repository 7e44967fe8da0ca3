"""Backbones and the patch features made from their stages."""
