#!/bin/bash
# From a conversations directory to training from a bucket; the second run reads the local cache.
#
#   export AWS_PROFILE=...                        # or the store's other ways to log in; never part of an address
#   export AWS_ENDPOINT_URL=https://s3.example    # only for a store that is not Amazon's
#   examples/bucket.sh DIR s3://BUCKET/PREFIX OUTPUT_DIR [options of `phi3v-train run`]
#
# Any step that was interrupted is run again by the same command: an export starts over, a run resumes. An export that is
# complete is used as it is; after a change of DIR the script stops there: `phi3v-data export ... --overwrite` replaces it.

set -euo pipefail

directory=$1 address=$2 output=$3
shift 3

phi3v-data export webdataset "$directory" --out "$address" --shard_mb 200
phi3v-data validate "$address"
phi3v-train run --data_dir "$address" --output_dir "$output" "$@"
