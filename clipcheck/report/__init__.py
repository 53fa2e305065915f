"""Render results as text, HTML, JUnit, Markdown and annotations."""
