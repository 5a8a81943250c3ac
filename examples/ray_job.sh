#!/bin/bash
# Convert, validate, clean and export a dataset on a Ray cluster; arguments after the first are those of `convert`.
#
#   export RAY_AUTH_MODE=token                    # on every machine; without it, whoever reaches the ports can run code
#   ray get-auth-token --generate                 # on the first machine; copy its ~/.ray/auth_token to the others
#   ray start --head --port=6379                  # on the first
#   ray start --address=HEAD:6379                 # on each of the others
#   examples/ray_job.sh /shared/data docvqa --source /shared/spdocvqa        # on any of them
#
# All machines need the same packages and the same file systems at the same paths: /shared here. Any step that was
# interrupted is run again by the same command: `convert` resumes, `validate` takes from its receipt what has not changed,
# `clean` and `export` do nothing if they are complete, else they start over.
# Rows that cannot be converted do not end it: they are in /shared/data/set/rejects.jsonl, the set has all others.
# With `RAY_ADDRESS` set, the cluster at that address does the work.

set -euo pipefail

data=$1
shift
export RAY_ADDRESS=${RAY_ADDRESS:-auto}

phi3v-data convert "$@" --out_dir "$data/set" --engine ray || [ $? = 1 ] # rejects: the set is complete but for them
phi3v-data validate "$data/set" --engine ray || [ $? = 1 ] # problems: `clean` leaves their rows out
phi3v-data clean "$data/set" "$data/clean" --engine ray
phi3v-data export webdataset "$data/clean" --out "$data/shards" --engine ray
