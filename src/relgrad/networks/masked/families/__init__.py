"""The families, one file each.

llada.py          LLaDA, LLaDA 1.5, LLaDA-MoE
dream.py          Dream, DiffuCoder
sdar.py           SDAR, TraDo
llada2.py         LLaDA 2
bidirectional.py  causal language models of transformers whose attention looks to both sides
"""

from relgrad.networks.masked.families import bidirectional, dream, llada, llada2, sdar
from relgrad.networks.masked.family import Family

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (llada.FAMILY, llada.MOE, dream.FAMILY, sdar.FAMILY, llada2.FAMILY, bidirectional.FAMILY)
}
