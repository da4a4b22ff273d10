"""Tasks: what models are trained for: data, baselines, figures, and what a card says of them."""
