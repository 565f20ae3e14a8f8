#!/bin/sh
# Trains the tokenizers of this folder's README, on what films.py has made; run again after a stop, it
# goes on where it was.
set -e
FILMS=${1:-films}
FRAMES=${2:-frames}

train() {
  folder=$1
  shift
  test -e "$folder/tokenizer.pt" && return
  resume=
  test -e "$folder/settings.json" && resume=--resume
  m2kit train tokenizer "$@" --steps 600 --channel-multipliers 1,2,2 --code-bits 8 --seed 1 \
    --warm-up 30 --ema-decay 0.98 --validate-every 200 --precision bf16 -o "$folder" $resume
}

train runs/video --frames 9 --data "$FILMS" --batch 8
train runs/image --data "$FRAMES" --size 32 --batch 72
