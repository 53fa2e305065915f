"""Small tools that everything uses."""
