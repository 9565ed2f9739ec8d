"""Finding texts by their vectors."""
