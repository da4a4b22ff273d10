"""The Open Inference Protocol, package `inference`: generated from the .proto file beside it, never edited by hand.

Its messages live in a descriptor pool of their own. Every client of the protocol brings generated code for the same
names, and one pool takes a name once only: with this one apart, such a client works in the process of a server.
"""
