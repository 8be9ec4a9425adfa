"""StyleAvatar at the paper's scale (Wang et al., SIGGRAPH 2023): networks, official weights, their file."""
