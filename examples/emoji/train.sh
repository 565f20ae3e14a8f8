#!/bin/sh
# What made tokenizer.pt, from emoji64.npz in the current folder; one core, about an hour.
set -e
m2kit train tokenizer --data emoji64.npz --one-of-group --flip --precision bf16 \
  --channel-multipliers 1,1,2,4 --code-bits 12 --steps 10000 --batch 16 --warm-up 500 \
  --warm-up-from 0 --floor 0.02 --clip 0 --ema-decay 0.999 --log-every 100 \
  --validate-every 500 --seed 0 -o runs/emoji-tokenizer "$@"
