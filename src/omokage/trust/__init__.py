"""What may leave and how it is marked: the visible label and the one door out."""
