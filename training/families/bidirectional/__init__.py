"""Bidirectional LSTM and GRU: exact over whole sequences, latency-controlled as streams."""
