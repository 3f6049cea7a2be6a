"""Language models that somebody else runs, behind one protocol; a file a kind.

protocol.py  what a back end is: requests, replies, usage, failures
endpoint.py  any OpenAI-compatible server
completions.py  the completions of training that a server writes, with token ids and adapters (vLLM)
local.py     a causal model of transformers in this process, through relgrad's own engine
replay.py    replies kept in a file, and given again
scripted.py  a stochastic solver whose error rates are known
pace.py      rate limits, and how long to wait before another attempt
reading.py   what a chat completion's JSON says
"""
