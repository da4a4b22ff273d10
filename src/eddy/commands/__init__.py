"""The commands of `eddy` that no part of the package owns alone. Each imports what it needs when it runs."""
