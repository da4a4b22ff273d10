"""Eddy: streaming inference for recurrent models."""
