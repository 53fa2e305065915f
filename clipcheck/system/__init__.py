"""Small tools that all rooms use."""
