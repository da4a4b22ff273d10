"""The service: wire -> session -> scheduler -> engine -> wire. Never imports torch or `eddy.training`."""
