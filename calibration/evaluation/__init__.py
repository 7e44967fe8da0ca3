"""Accuracy of a bundle on labelled images: metrics, intervals, few-step samplings, and the report."""
