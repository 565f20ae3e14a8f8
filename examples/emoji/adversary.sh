#!/bin/sh
# Trains emoji.pt's decoder further, against a discriminator, from emoji64.npz in the current folder;
# one core, twenty minutes.
set -e
m2kit train tokenizer --data emoji64.npz --one-of-group --flip --precision bf16 --seed 0 \
  --channel-multipliers 1,1,2,4 --code-bits 12 --init "$(dirname "$0")/emoji.pt" --freeze-encoder \
  --adversary patch --adversary-width 32 --adversary-weight 0.1 --steps 1500 --batch 16 \
  --learning-rate 3e-4 --warm-up 100 --warm-up-from 0 --floor 0.1 --clip 0 --ema-decay 0.998 \
  --log-every 25 --validate-every 250 -o runs/emoji-adversary "$@"
