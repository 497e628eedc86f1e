"""What is on disk: the official files, their download, the TSV reader."""
