"""Post-training: conversations with loss masks, the mixture, the step loop, and Ray Train around it."""
