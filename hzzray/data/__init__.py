"""ROOT files in, columns out."""
