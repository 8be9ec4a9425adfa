"""Everything the transformer is told: the portrait, the motion frames, the speech, the prompt."""
