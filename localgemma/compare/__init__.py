"""What each quantisation level costs: KL divergence, tasks, speed and answers, beside a reference."""
