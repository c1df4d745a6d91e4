"""What a vision-language model is to this package: chat format on token ids, model families, loading and export."""
