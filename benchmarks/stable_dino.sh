#!/bin/sh
# Train DINO and Stable-DINO on digit scenes with six seeds each, from a classifier's checkpoint, and print box AP.
# Further words are settings of all runs, such as half of the recipe's length:
#     sh benchmarks/stable_dino.sh runs/demo/checkpoints/best.pt runs/stable_dino optimisation.length=4ep
# A run that is finished is not repeated, and one that was stopped continues.
set -e
weights="${1:?give the checkpoint of a finished digits_visformer run}"
out="${2:-runs/stable_dino}"
[ $# -lt 2 ] && shift || shift 2
for seed in 0 1 2 3 4 5; do
  for stable in false true; do
    run="$out/stable_${stable}_seed_$seed"
    python -m fourstage train digit_scenes_dino weights="$weights" seed="$seed" method_args.stable="$stable" "$@" --out "$run"
    python -c "import json, sys; print(sys.argv[1], round(json.load(open(sys.argv[1] + '/evaluation.json'))['metrics']['box_map'], 2))" "$run"
  done
done
