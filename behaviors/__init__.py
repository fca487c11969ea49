"""The behaviors that engrain ships: plugins like anybody's, on the public plugin interface alone."""
