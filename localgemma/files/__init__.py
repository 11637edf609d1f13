"""Models on disk: GGUF headers, projectors, and where files are."""
