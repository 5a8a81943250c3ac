"""Inference engines that have a class for Phi-3-vision: what they need of a model directory, and what one lacks."""
