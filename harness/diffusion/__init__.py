"""Models, adapters, training and sampling: the only room with diffusers, peft and accelerate."""
