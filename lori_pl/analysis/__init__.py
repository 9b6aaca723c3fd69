"""What trained models hold: the rank of their trajectories, and what a latent means. Knows no method and no Trainer."""
