"""The second half of `make demo`: train on the mini set, kill the run, resume, evaluate, train an adapter, merge.

    python examples/train_demo.py demo_out [--seed 0]

Every step is a command of `phi3v-train`, printed before it runs; only the kill is done here. The model is `tiny`, which
can learn these 3 classes and little more.
"""

import argparse
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

RECIPE = "demo-ucf101-tiny"
KILL_AFTER = "checkpoint-000030"
WANTED = 0.9
"""Accuracy on the training clips that the demo must reach."""
SCORED_AS_TRAINED = ["--num_crops", "1", "--max_new_tokens", "16"]


def show(arguments: list[str]) -> list[str]:
    """Print a command as a user types it; return the command for this interpreter."""
    print(f"\n$ phi3v-train {shlex.join(arguments)}", flush=True)
    return [sys.executable, "-m", "phi3v_train", *arguments]


def run(*arguments: str) -> None:
    """Run a command; if it fails, exit with its exit code."""
    code = subprocess.run(show([*arguments]), check=False).returncode
    if code:
        sys.exit(code)


def run_and_kill(arguments: list[str], checkpoint: Path) -> None:
    """Start a command and kill it with SIGKILL as soon as `checkpoint` is complete."""
    with subprocess.Popen(show(arguments)) as process:
        while process.poll() is None and not (checkpoint / "COMPLETE.json").exists():
            time.sleep(0.02)
        killed = process.poll() is None
        process.kill()
    if killed:
        print(f"\n(killed with SIGKILL after {checkpoint.name}; the same command again)", flush=True)
    elif process.returncode not in (0, -signal.SIGKILL):
        sys.exit(process.returncode)


def accuracy(result: Path) -> float:
    """Read the accuracy from a result file."""
    return float(json.loads(result.read_text(encoding="utf-8"))["metrics"]["accuracy"])


def main() -> None:
    """Train, kill, resume, evaluate, train an adapter, merge; then print where the results are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo_out", type=Path, help="contains ucf101/, written by phi3v-data convert")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    data, out, seed = str(args.demo_out / "ucf101"), args.demo_out / "run", str(args.seed)

    train = ["run", "--data_dir", data, "--recipe", RECIPE, "--seed", seed, "--output_dir", str(out)]
    run_and_kill(train, out / KILL_AFTER)
    run(*train)
    model = ["--model_name_or_path", str(out / "model")]
    for split in ("train", "test"):
        where = str(args.demo_out / f"eval_{split}")
        run("eval", "--data_dir", data, "--eval_split", split, *model, *SCORED_AS_TRAINED, "--output_dir", where)
    # An adapter on the fine-tuned model, trained for a few steps, to be merged.
    adapter, merged = args.demo_out / "adapter", args.demo_out / "merged"
    run(
        "run", "--data_dir", data, "--recipe", RECIPE, "--seed", seed, *model, "--use_lora", "--lora_rank", "8",
        "--learning_rate", "1e-4", "--warmup_steps", "2", "--max_steps", "6", "--no_eval_before",
        "--output_dir", str(adapter),
    )  # fmt: skip
    run("merge", str(adapter / "model"), str(merged), "--overwrite")
    where = str(args.demo_out / "eval_merged")
    scored = ["--model_name_or_path", str(merged), *SCORED_AS_TRAINED]
    run("eval", "--data_dir", data, "--eval_split", "test", *scored, "--output_dir", where)

    known = accuracy(args.demo_out / "eval_train" / "eval.json")
    print(f"\naccuracy of {out / 'model'}:")
    print(f"  val, before training      {accuracy(out / 'eval_before.json'):6.1%}")
    print(f"  val, after                {accuracy(out / 'eval_after.json'):6.1%}")
    print(f"  train                     {known:6.1%}")
    print(f"  test (held out)           {accuracy(args.demo_out / 'eval_test' / 'eval.json'):6.1%}")
    print(f"  test, adapter merged in   {accuracy(args.demo_out / 'eval_merged' / 'eval.json'):6.1%}")
    print(f"loss plot    {out / 'loss.png'}")
    print(f"predictions  {args.demo_out / 'eval_test' / 'predictions.jsonl'}")
    print(f"merged model {merged}")
    if known < WANTED:
        sys.exit(f"the accuracy on the training clips is only {known:.1%}; at least {WANTED:.0%} is expected")


if __name__ == "__main__":
    main()
