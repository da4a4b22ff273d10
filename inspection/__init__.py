"""Models that others exported: what they need to stream, found out and given."""
