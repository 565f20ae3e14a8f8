#!/bin/sh
# Makes emoji.pt from emoji64.npz in the current folder, in about three hours of one core.
# Run again after a stop, it goes on where it was; the first argument is a folder for the runs.
set -e
runs=${1:-runs}
here=$(dirname "$0")

train() {  # train KIND FOLDER OPTION...: begin the run in a folder, or go on with it
  kind=$1 folder=$2
  shift 2
  [ ! -e "$folder/settings.json" ] || set -- "$@" --resume
  m2kit train "$kind" --data emoji64.npz --one-of-group --flip --precision bf16 --seed 0 "$@" \
    -o "$folder"
}

train tokenizer "$runs/emoji-tokenizer" --channel-multipliers 1,1,2,4 --code-bits 12 \
  --steps 10000 --batch 16 --warm-up 500 --warm-up-from 0 --floor 0.02 --clip 0 \
  --ema-decay 0.999 --log-every 100 --validate-every 500
python "$here/bf16.py" "$runs/emoji-tokenizer/tokenizer.pt" "$runs/emoji-tokenizer/bf16.pt"

train ar "$runs/emoji-ar" --tokenizer "$runs/emoji-tokenizer/bf16.pt" --warp 0.3 --versions 8 \
  --bits 4,8 --width 256 --heads 4 --inter-layers 6 --intra-layers 1 --ffn-width 640 \
  --steps 2800 --dropout 0.1 --batch 64 --warm-up 60 --flat 0.05 --log-every 25 \
  --validate-every 200 --save-every 100
python "$here/bf16.py" "$runs/emoji-ar/ar.pt" emoji.pt
