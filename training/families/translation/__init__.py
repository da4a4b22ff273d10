"""The translation family: an encoder that writes a memory once, a decoder that reads it step by step."""
