"""The HTTP server: OpenAI's wire format and umbel's own routes over one engine and one registry."""
