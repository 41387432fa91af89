"""Trained networks for timm, torchvision, ONNX and the Hugging Face hub."""
