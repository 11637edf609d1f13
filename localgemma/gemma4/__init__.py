"""What is true of the Gemma 4 family: tokens, prompt, reply, pictures. Pure: no file, no library, no network."""
