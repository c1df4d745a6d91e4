"""Task synthesis: a VLM writes a task for each image, a language model keeps the consistent ones.

prompts.py      the fixed sentences of the synthesizer's protocol and its prompt
engine.py       one vLLM replica; the only file that imports vllm
triplets.py     response token ids -> (question, informative answer, precise answer), or a verdict
consistency.py  the judge: prompt, labels, probabilities, decision
pipeline.py     all of it as one streaming Ray Data execution that survives a kill
"""
