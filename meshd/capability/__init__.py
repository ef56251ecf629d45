"""What nodes offer: manifests, schemas, matching. Pure."""
