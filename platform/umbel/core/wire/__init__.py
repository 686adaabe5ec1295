"""Wire models, one file per noun: what requests and replies look like over HTTP. Server and client read the same.

Requests refuse fields that nobody knows, by name; replies ignore them, so that an older client reads a newer server.
"""
