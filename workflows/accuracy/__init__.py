"""Accuracy of methods over data sets of many categories, as tables."""
