"""What is on disk: official files, their download, readers of TSV, pairs and sentences, Hangul composed."""
