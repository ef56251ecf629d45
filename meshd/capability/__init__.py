"""What a node offers: descriptions, schemas, definitions from code and files, and matching."""
