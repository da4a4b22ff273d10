"""The Python client library: asyncio first, with a thin synchronous face.

Users import its names from `eddy`.
"""
