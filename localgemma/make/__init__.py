"""Building model files: converting, quantising, importance matrices."""
