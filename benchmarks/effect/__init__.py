"""What guidance does to pictures, measured: conditions, prompts, drawing, scoring, statistics and reports."""
