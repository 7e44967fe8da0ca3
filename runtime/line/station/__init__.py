"""The life of a part: trigger, views, score, verdict within the deadline, record, output."""
