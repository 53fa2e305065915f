"""Compare other libraries' preprocessing and tokenizers with clipcheck's."""
