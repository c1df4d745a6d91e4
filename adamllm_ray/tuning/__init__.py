"""`adamllm tune`: a search over mixtures and other fields. A trial mixes, trains, and answers validation questions."""
