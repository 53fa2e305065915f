"""From a result to text, JSON and so on. Nothing in here reads or writes files."""
