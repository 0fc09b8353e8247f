"""What the user asks for, as tensors the networks accept: prompt, first picture, driving voice."""
