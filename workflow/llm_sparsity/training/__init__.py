"""How quality comes back: the fine-tuning loop, masks, schedules, distillation, LoRA, the run cache.

This package alone knows optimizer state. It holds removed weights at zero while the others train.
"""
