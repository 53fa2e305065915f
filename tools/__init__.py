"""Tools that make and check releases and documentation. They are not part of the wheel."""
