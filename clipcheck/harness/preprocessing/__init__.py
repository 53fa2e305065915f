"""How other libraries make pixels of images and ids of texts, beside clipcheck's own way."""
