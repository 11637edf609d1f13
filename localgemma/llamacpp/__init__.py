"""The only room that knows ctypes and llama_cpp."""
