"""From live programs to what runs without Python: graphs, files."""
