"""The wire contract, package `eddy.v1`: generated from the .proto files beside it, never edited by hand."""
