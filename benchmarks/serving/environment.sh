#!/usr/bin/env bash
# benchmarks/serving/environment.sh vllm|mlx DIR: an environment in which an engine's own code for Phi-3-vision can be
# imported on a CPU. The engines are installed with --no-deps, as vLLM asks for another build of torch: torch and what
# else it lacks come from the environment of `make test` (.venv, or the site-packages directory in BASE).
set -euo pipefail
engine=${1:?vllm or mlx}; dir=${2:?directory of the environment}
cd "$(dirname "$0")/../.."
base=${BASE:-$(.venv/bin/python -c 'import torch, pathlib; print(pathlib.Path(torch.__file__).parents[1])')}
[ -x "$dir/bin/python" ] || "${PYTHON:-python3}" -m venv "$dir"
packages=$("$dir/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
echo "$base" > "$packages/zz_base.pth"
pwd > "$packages/zz_phi3v.pth"
install() { "$dir/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "$@"; }
case $engine in
  vllm)
    install vllm==0.33.0 transformers==5.20.2 compressed-tensors==0.17.0 depyf==0.20.0 lark==1.2.2 \
      apache-tvm-ffi==0.1.11 xgrammar==0.2.9 llguidance==1.9.1
    # what vLLM's modules import on the way to its phi3v module
    install aiohappyeyeballs aiohttp aiosignal astor attrs blake3 cachetools cbor2 cloudpickle diskcache distro einops \
      frozenlist ijson jiter jsonschema jsonschema-specifications mistral_common multidict openai openai_harmony \
      opentelemetry-api opentelemetry-sdk opentelemetry-semantic-conventions opentelemetry-semantic-conventions-ai \
      orjson partial-json-parser propcache protobuf py-cpuinfo pybase64 pycountry pydantic-extra-types \
      python-json-logger pyzmq referencing regex rpds-py sentencepiece setproctitle tiktoken uvloop watchfiles yarl
    "$dir/bin/python" -c 'import vllm.model_executor.models.phi3v'
    ;;
  mlx)
    install mlx==0.32.4 mlx-cpu==0.32.4 mlx-vlm==0.7.10
    "$dir/bin/python" -c 'import mlx_vlm.models.phi3_v'
    ;;
  *) echo "unknown engine: $engine" >&2; exit 2 ;;
esac
