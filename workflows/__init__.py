"""What joins the stages: pipeline, demo, and the downstream benchmark. The only room that may import all others."""
