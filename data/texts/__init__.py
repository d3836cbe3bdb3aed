"""Real text: files of records, read once into a corpus's own store."""
