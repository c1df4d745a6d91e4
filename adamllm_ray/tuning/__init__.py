"""Search over mixtures and other fields: each trial mixes, trains and is scored on validation questions (`adamllm tune`)."""
