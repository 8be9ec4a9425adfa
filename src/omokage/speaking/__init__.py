"""From a voice or a text to the motion of a face."""
