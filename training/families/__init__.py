"""Families of architectures: each brings its shape, its torch model, its graphs and its contract."""
