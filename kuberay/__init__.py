"""Kubernetes manifests and the code that writes them."""
