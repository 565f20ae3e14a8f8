#!/bin/sh
# Trains the tokenizers of this folder's README, on films that films.py has made of emoji64.npz.
# Run again after a stop, it goes on where it was.
set -e
FILMS=${1:-films}
PICTURES=${2:-emoji64.npz}

train() {
  folder=$1
  shift
  test -e "$folder/tokenizer.pt" && return
  resume=
  test -e "$folder/settings.json" && resume=--resume
  m2kit train tokenizer "$@" --channel-multipliers 1,2,2,2 --code-bits 10 --flip --seed 1 \
    --warm-up 50 --ema-decay 0.99 --validate-every 250 -o "$folder" $resume
}

train video --frames 9 --data "$FILMS" --batch 8 --steps 1000
