"""Training: real data to a recurrent model, to a verified ONNX step graph with its contract.

The way through the modules: `recipe` and `data` -> `model` -> `train` -> `checkpoint` -> `graph` and `export` ->
`verify` -> `card`; `commands` hangs them on the command line. Nothing here knows the service: what both sides share
is the model contract in `eddy.v1`.

Dimension key of the repository: B batch (rows, one session each), T steps, F features, L layers, D directions,
H hidden units, V vocabulary, S slots. Here also: N length of a corpus or series, E embedding width, K horizons,
Q quantiles.
"""
