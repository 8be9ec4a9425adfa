"""Files to pictures and sound, and back. The only package that touches codecs."""
