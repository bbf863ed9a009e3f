"""The proxy measured beside nginx and docker-registry, on the same upstream and the same bytes."""
