"""How the video transformers learn: batches, the two published stages, the loop. Inference imports none of it."""
